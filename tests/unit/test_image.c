/* Decoding, resizing and views against Pillow's pixels (tests/oracle/make_image_fixtures.py), partial and
 * reduced decoding against whole decoding, and what is refused. */
#include "tests/unit/test_data_files.h"

#include <math.h>

#include <jpeglib.h>

#include "base/philox.h"
#include "data/image.h"
#include "data/input.h"
#include "data/view.h"

#define FOLDER "tests/oracle/images/"

static tn_image image, other;
static tn_resizer resizer;

static void read_fixture(const char *name, uint8_t **bytes, size_t *size) {
    char path[300];
    snprintf(path, sizeof path, FOLDER "%s", name);
    if (tn_input_read(path, bytes, size) != TN_OK) fail_msg("%s", tn_error());
}

/* Decodes a whole image into fresh memory (free with free). */
static uint8_t *decode_all(tn_image *with, const uint8_t *bytes, size_t size, int *width, int *height) {
    tn_pixels pixels;
    int factor;
    if (tn_image_open(with, bytes, size) != TN_OK) fail_msg("%s", tn_error());
    tn_rectangle all = {0, 0, with->width, with->height};
    if (tn_image_decode(with, &all, NULL, &pixels, &factor) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(factor, 1);
    assert_int_equal(pixels.width, with->width);
    assert_int_equal(pixels.height, with->height);
    size_t row = 3 * (size_t)pixels.width;
    uint8_t *copy = malloc(row * (size_t)pixels.height);
    assert_non_null(copy);
    for (int y = 0; y < pixels.height; y++)
        memcpy(copy + (size_t)y * row, pixels.at + (size_t)y * pixels.stride, row);
    *width = pixels.width;
    *height = pixels.height;
    return copy;
}

static uint8_t *fixture_pixels(const char *name, int *width, int *height) {
    uint8_t *bytes;
    size_t size;
    read_fixture(name, &bytes, &size);
    uint8_t *pixels = decode_all(&other, bytes, size, width, height);
    tn_free(bytes);
    return pixels;
}

static int largest_difference(const uint8_t *a, const uint8_t *b, size_t count) {
    int largest = 0;
    for (size_t i = 0; i < count; i++)
        if (abs(a[i] - b[i]) > largest) largest = abs(a[i] - b[i]);
    return largest;
}

static void check_decode(const char *name, const char *expected) {
    int width, height, w, h;
    uint8_t *got = fixture_pixels(name, &width, &height), *wanted = fixture_pixels(expected, &w, &h);
    assert_int_equal(width, w);
    assert_int_equal(height, h);
    int difference = largest_difference(got, wanted, 3 * (size_t)w * (size_t)h);
    if (difference > 0) fail_msg("%s: pixels differ from Pillow's by up to %d", name, difference);
    free(got);
    free(wanted);
}

static void check_view(const char *name, const tn_view *view, const char *expected) {
    int w, h;
    size_t size;
    uint8_t *bytes, *got, *wanted = fixture_pixels(expected, &w, &h);
    assert_int_equal(view->columns, w);
    assert_int_equal(view->rows, h);
    read_fixture(name, &bytes, &size);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
    if (tn_view_make(view, false, &image, &resizer, &got) != TN_OK) fail_msg("%s: %s", name, tn_error());
    int difference = largest_difference(got, wanted, 3 * (size_t)w * (size_t)h);
    if (difference > 0) fail_msg("%s: the view differs from Pillow's by up to %d", expected, difference);
    tn_free(bytes);
    free(wanted);
}

static void open_fixture(const char *name) {
    uint8_t *bytes;
    size_t size;
    read_fixture(name, &bytes, &size);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
    tn_free(bytes);
}

static tn_status decode_damaged(const char *name) {
    uint8_t *bytes;
    size_t size;
    tn_pixels pixels;
    int factor;
    read_fixture(name, &bytes, &size);
    tn_status status = tn_image_open(&image, bytes, size);
    if (status == TN_OK)
        status =
            tn_image_decode(&image, &(tn_rectangle){0, 0, image.width, image.height}, NULL, &pixels, &factor);
    tn_free(bytes);
    return status;
}

static void as_pillow_does(void **state) {
    (void)state;
    char line[300], file[100], result[200];
    int n[5], cases[4] = {0};
    FILE *manifest = fopen(FOLDER "manifest.txt", "r");
    assert_non_null(manifest);
    while (fgets(line, sizeof line, manifest)) {
        if (sscanf(line, "decode %99s %199s", file, result) == 2) {
            check_decode(file, result);
            cases[0]++;
        } else if (sscanf(line, "centre %99s %d %d %199s", file, &n[0], &n[1], result) == 4) {
            open_fixture(file);
            tn_view view = tn_view_centre(image.width, image.height, n[0], n[1]);
            check_view(file, &view, result);
            cases[1]++;
        } else if (sscanf(line, "crop %99s %d %d %d %d %d %199s", file, &n[0], &n[1], &n[2], &n[3], &n[4],
                          result) == 7) {
            tn_view view = {.part = {n[0], n[1], n[2], n[3]},
                            .height = n[4],
                            .width = n[4],
                            .rows = n[4],
                            .columns = n[4]};
            check_view(file, &view, result);
            cases[2]++;
        } else if (sscanf(line, "damaged %99s", file) == 1) {
            tn_status status = decode_damaged(file);
            if (status != TN_ERR_DATA || strchr(tn_error(), '\n')) fail_msg("%s: status %d", file, status);
            cases[3]++;
        } else {
            fail_msg("%s", line);
        }
    }
    fclose(manifest);
    assert_true(cases[0] >= 18 && cases[1] >= 11 && cases[2] >= 7 && cases[3] >= 5);
}

/* Any part decoded by itself has the pixels that it has in the whole image. */
static void parts_are_those_of_the_whole(void **state) {
    (void)state;
    static const char *const names[] = {"420.jpg",         "422.jpg",      "444.jpg",  "progressive.jpg",
                                        "cmyk.jpg",        "restarts.jpg", "grey.jpg", "rgba.png",
                                        "photo-sized.jpg", "large.jpg"};
    tn_rng rng = tn_rng_open(1, TN_RNG_SYNTHETIC, 0, 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int width, height, factor;
        size_t size;
        uint8_t *bytes, *whole;
        read_fixture(names[i], &bytes, &size);
        whole = decode_all(&other, bytes, size, &width, &height);
        for (int k = 0; k < 40; k++) {
            tn_pixels pixels;
            tn_rectangle part;
            part.left = (int)tn_rng_below(&rng, (uint32_t)width);
            part.top = (int)tn_rng_below(&rng, (uint32_t)height);
            part.width = 1 + (int)tn_rng_below(&rng, (uint32_t)(width - part.left));
            part.height = 1 + (int)tn_rng_below(&rng, (uint32_t)(height - part.top));
            assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
            if (tn_image_decode(&image, &part, NULL, &pixels, &factor) != TN_OK) fail_msg("%s", tn_error());
            assert_int_equal(pixels.width, part.width);
            assert_int_equal(pixels.height, part.height);
            for (int y = 0; y < part.height; y++)
                if (memcmp(pixels.at + (size_t)y * pixels.stride,
                           whole + 3 * ((size_t)(part.top + y) * (size_t)width + (size_t)part.left),
                           3 * (size_t)part.width) != 0)
                    fail_msg("%s: %dx%d at (%d, %d): row %d differs", names[i], part.width, part.height,
                             part.left, part.top, y);
        }
        tn_free(bytes);
        free(whole);
    }
}

static double mean_difference(const uint8_t *a, const uint8_t *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += abs(a[i] - b[i]);
    return sum / (double)count;
}

/* A view made from reduced pixels shows the same thing at the same place. */
static void reduced_views_are_close(void **state) {
    (void)state;
    static const struct {
        tn_rectangle part;
        int size, factor;
    } cases[] = {{{0, 0, 400, 300}, 150, 2}, {{0, 0, 400, 300}, 151, 1},  {{33, 21, 320, 270}, 64, 4},
                 {{1, 1, 399, 299}, 32, 8},  {{200, 100, 97, 99}, 40, 2}, {{7, 5, 390, 290}, 20, 8},
                 {{399, 299, 1, 1}, 16, 1}};
    uint8_t *bytes;
    size_t size;
    read_fixture("large.jpg", &bytes, &size);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = cases[i].size, factor;
        size_t count = 3 * (size_t)n * (size_t)n;
        const int least[2] = {n, n};
        tn_view view = {.part = cases[i].part, .height = n, .width = n, .rows = n, .columns = n};
        tn_pixels pixels;
        uint8_t *out, *exact = malloc(count);
        assert_non_null(exact);
        assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
        assert_int_equal(tn_image_decode(&image, &view.part, least, &pixels, &factor), TN_OK);
        assert_int_equal(factor, cases[i].factor);
        assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
        assert_int_equal(tn_view_make(&view, false, &image, &resizer, &out), TN_OK);
        memcpy(exact, out, count);
        assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
        assert_int_equal(tn_view_make(&view, true, &image, &resizer, &out), TN_OK);
        double difference = mean_difference(out, exact, count);
        if (difference > (factor == 1 ? 0.0 : 1.5))
            fail_msg("case %zu: reduced by %d, mean difference %.2f", i, factor, difference);
        free(exact);
    }
    tn_free(bytes);
}

static void views_are_drawn_as_documented(void **state) {
    (void)state;
    double areas = 0, flips = 0;
    for (int i = 0; i < 4000; i++) {
        int width = 90 + i % 300, height = 80 + i % 170;
        tn_view view = tn_view_random(5, 3, i, width, height, 24),
                again = tn_view_random(5, 3, i, width, height, 24);
        assert_memory_equal(&view.part, &again.part, sizeof view.part);
        assert_int_equal(view.flip, again.flip);
        assert_true(view.part.left >= 0 && view.part.top >= 0 && view.part.width > 0 && view.part.height > 0);
        assert_true(view.part.left + view.part.width <= width && view.part.top + view.part.height <= height);
        double area = (double)view.part.width * view.part.height / ((double)width * height);
        double ratio = (double)view.part.width / view.part.height;
        assert_true(area > .07 && area <= 1.0 && ratio > .71 && ratio < 1.4);
        areas += area;
        flips += view.flip;
    }
    /* Crops that do not fit are drawn again, which takes from the large ones: below the .54 of the draw. */
    assert_true(areas / 4000 > .36 && areas / 4000 < .54);
    assert_true(fabs(flips / 4000 - .5) < .03);
    /* Another epoch or seed is another draw. */
    tn_view a = tn_view_random(5, 3, 7, 100, 100, 24), b = tn_view_random(5, 4, 7, 100, 100, 24);
    tn_view c = tn_view_random(6, 3, 7, 100, 100, 24);
    assert_true(memcmp(&a.part, &b.part, sizeof a.part) != 0 && memcmp(&a.part, &c.part, sizeof a.part) != 0);
    /* No crop of a long strip fits: its middle. */
    tn_view strip = tn_view_random(1, 1, 1, 1000, 6, 24);
    assert_int_equal(strip.part.height, 6);
    assert_int_equal(strip.part.width, 8);
    assert_int_equal(strip.part.left, 496);
    tn_view dot = tn_view_random(1, 1, 1, 1, 1, 24);
    assert_int_equal(dot.part.width * dot.part.height, 1);
}

/* The stream written out by hand. */
static void the_draw_is_the_stream(void **state) {
    (void)state;
    for (int sample = 0; sample < 50; sample++) {
        tn_rng rng = tn_rng_open(9, TN_RNG_AUGMENT, 2, (uint32_t)sample);
        double area = 1e6 * (.08 + .92 * tn_rng_uniform(&rng));
        double ratio = pow(4.0 / 3.0, 2 * tn_rng_uniform(&rng) - 1);
        int w = (int)rint(sqrt(area * ratio)), h = (int)rint(sqrt(area / ratio));
        if (w > 1000 || h > 1000) continue;
        int top = (int)tn_rng_below(&rng, (uint32_t)(1000 - h + 1));
        int left = (int)tn_rng_below(&rng, (uint32_t)(1000 - w + 1));
        tn_view view = tn_view_random(9, 2, sample, 1000, 1000, 8);
        assert_int_equal(view.part.top, top);
        assert_int_equal(view.part.left, left);
        assert_int_equal(view.part.width, w);
        assert_int_equal(view.part.height, h);
        assert_int_equal(view.flip, tn_rng_bits(&rng) >> 31);
    }
}

static void put_u16(uint8_t *at, unsigned value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* A start-of-frame marker in the fixture, FFC0 or FFC2. */
static uint8_t *frame_of(uint8_t *bytes, size_t size) {
    for (size_t i = 0; i + 9 < size; i++)
        if (bytes[i] == 0xff && (bytes[i + 1] == 0xc0 || bytes[i + 1] == 0xc2)) return bytes + i;
    fail_msg("no frame");
    return NULL;
}

static void huge_images_are_refused_before_they_are_decoded(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t size;
    read_fixture("progressive.jpg", &bytes, &size);
    uint8_t *frame = frame_of(bytes, size);
    size_t before = tn_memory_in_use();
    put_u16(frame + 5, 65000);
    put_u16(frame + 7, 65000);
    assert_fails(tn_image_open(&image, bytes, size), TN_ERR_DATA, "JPEG", "65000x65000");
    put_u16(frame + 5, 0);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_ERR_DATA);
    tn_free(bytes);
    read_fixture("rgb.png", &bytes, &size);
    memcpy(bytes + 16, "\x00\x00\xff\x00\x00\x00\xff\x00", 8);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_ERR_DATA); /* the header's checksum */
    tn_free(bytes);
    static const char huge[] = "P6\n65000 65000\n255\nxxxxxxxxxxxxxxxx", bad[] = "P6\n6 65000\n65535\nxxx";
    assert_fails(tn_image_open(&image, (const uint8_t *)huge, sizeof huge), TN_ERR_DATA, "65000x65000");
    assert_fails(tn_image_open(&image, (const uint8_t *)bad, sizeof bad), TN_ERR_DATA, "P6 WIDTH HEIGHT 255");
    assert_true(tn_memory_in_use() <= before);
}

/* Damage in the middle of the data, and a scan script without end. */
static void damaged_data_is_refused(void **state) {
    (void)state;
    uint8_t *bytes, *bomb;
    size_t size;
    tn_pixels pixels;
    int factor;
    read_fixture("420.jpg", &bytes, &size);
    memset(bytes + size / 2, 0xff, 40);
    assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
    tn_rectangle all = {0, 0, image.width, image.height};
    assert_fails(tn_image_decode(&image, &all, NULL, &pixels, &factor), TN_ERR_DATA, "JPEG");
    tn_free(bytes);
    /* A file without an end is refused even where the part that is wanted is there. */
    read_fixture("cut.jpg", &bytes, &size);
    assert_fails(tn_image_open(&image, bytes, size), TN_ERR_DATA, "JPEG", "cut short");
    tn_free(bytes);
    /* The last scan again and again. */
    read_fixture("progressive.jpg", &bytes, &size);
    size_t scan = size;
    for (size_t i = 0; i + 1 < size; i++)
        if (bytes[i] == 0xff && bytes[i + 1] == 0xda) scan = i;
    size_t length = size - 2 - scan, copies = 200;
    bomb = malloc(size + copies * length);
    assert_non_null(bomb);
    memcpy(bomb, bytes, size - 2);
    for (size_t i = 0; i < copies; i++) memcpy(bomb + size - 2 + i * length, bytes + scan, length);
    memcpy(bomb + size - 2 + copies * length, "\xff\xd9", 2);
    assert_int_equal(tn_image_open(&image, bomb, size + copies * length), TN_OK);
    assert_int_equal(tn_image_decode(&image, &all, NULL, &pixels, &factor), TN_ERR_DATA);
    free(bomb);
    tn_free(bytes);
    /* The decoder is as good as new. */
    check_decode("progressive.jpg", "progressive.jpg.ppm");
}

/* A valid progressive JPEG with `scans` scans: the DC of all components, then single AC coefficients. */
static uint8_t *many_scans(int scans, size_t *size) {
    static jpeg_scan_info script[200];
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long length = 0;
    script[0] = (jpeg_scan_info){.comps_in_scan = 3, .component_index = {0, 1, 2}};
    for (int i = 1; i < scans; i++)
        script[i] = (jpeg_scan_info){.comps_in_scan = 1,
                                     .component_index = {(i - 1) % 3},
                                     .Ss = 1 + (i - 1) / 3,
                                     .Se = 1 + (i - 1) / 3};
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &bytes, &length);
    info.image_width = info.image_height = 16;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    info.scan_info = script;
    info.num_scans = scans;
    jpeg_start_compress(&info, TRUE);
    for (int y = 0; y < 16; y++) {
        JSAMPLE pixels[48];
        JSAMPROW row = pixels;
        for (int i = 0; i < 48; i++) pixels[i] = (JSAMPLE)(y * 7 + i * 5);
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    *size = length;
    return bytes;
}

static void scans_are_counted(void **state) {
    (void)state;
    tn_rectangle all = {0, 0, 16, 16};
    tn_pixels pixels;
    int factor;
    for (int more = 0; more < 2; more++) {
        size_t size;
        uint8_t *bytes = many_scans(TN_IMAGE_SCANS_MAX + more, &size);
        assert_int_equal(tn_image_open(&image, bytes, size), TN_OK);
        tn_status status = tn_image_decode(&image, &all, NULL, &pixels, &factor);
        if (more)
            assert_fails(status, TN_ERR_DATA, "more than 100 scans");
        else if (status != TN_OK)
            fail_msg("%s", tn_error());
        free(bytes);
    }
}

static int close_all(void **state) {
    (void)state;
    tn_image_free(&image);
    tn_image_free(&other);
    tn_resizer_free(&resizer);
    return tn_memory_in_use() == 0 ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_pillow_does),
        cmocka_unit_test(parts_are_those_of_the_whole),
        cmocka_unit_test(reduced_views_are_close),
        cmocka_unit_test(views_are_drawn_as_documented),
        cmocka_unit_test(the_draw_is_the_stream),
        cmocka_unit_test(huge_images_are_refused_before_they_are_decoded),
        cmocka_unit_test(damaged_data_is_refused),
        cmocka_unit_test(scans_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, close_all);
}
