/* Crop, flip and normalisation of one image against a plain computation, and the draw behind them. */
#include "tests/unit/test_data_files.h"

#include "base/philox.h"
#include "data/augment.h"

#define IMAGE_MAX (16 * 8 * 8)

static const float mean[16] = {.49f, .48f, .44f, .1f, .2f, .3f, .4f,  .5f,
                               .6f,  .7f,  .8f,  .9f, 0.f, 1.f, .11f, .12f};
static const float deviation[16] = {.2f, .25f, .3f, .1f, .2f, .3f, .4f, .5f,
                                    .6f, .7f,  .8f, .9f, 1.f, 2.f, 3.f, .01f};

/* The same by the book: pad, cut, mirror, normalise. */
static void plainly(const uint8_t *image, int h, int w, int channels, int p, tn_augmentation how,
                    float *out) {
    uint8_t padded[16][32][32] = {{{0}}};
    uint8_t window[16][8][8];
    for (int c = 0; c < channels; c++) {
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) padded[c][y + p][x + p] = image[(y * w + x) * channels + c];
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) window[c][y][x] = padded[c][y + how.dy][x + how.dx];
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                double value = window[c][y][how.flip ? w - 1 - x : x] / 255.0;
                out[(y * w + x) * channels + c] = (float)((value - (double)mean[c]) / (double)deviation[c]);
            }
    }
}

static void check_all_windows(int h, int w, int channels, int padding) {
    tn_image_format format = {.channels = channels, .height = h, .width = w, .padding = padding};
    uint8_t image[IMAGE_MAX];
    float wanted[IMAGE_MAX], got[IMAGE_MAX + 1];
    size_t size = (size_t)h * (size_t)w * (size_t)channels;
    for (size_t i = 0; i < size; i++) image[i] = (uint8_t)(i * 101 + 7);
    tn_image_format_normalise(&format, mean, deviation);
    for (int dy = 0; dy <= 2 * padding; dy++)
        for (int dx = 0; dx <= 2 * padding; dx++)
            for (int flip = 0; flip < 2; flip++) {
                tn_augmentation how = {dy, dx, flip};
                got[size] = 12345.f;
                plainly(image, h, w, channels, padding, how, wanted);
                tn_augment_apply(&format, image, how, got);
                assert_memory_equal(got, wanted, size * sizeof *got);
                assert_true(got[size] == 12345.f);
            }
}

static void every_window_of_every_shape(void **state) {
    (void)state;
    check_all_windows(8, 8, 3, 4);
    check_all_windows(7, 6, 3, 0);
    check_all_windows(8, 5, 1, 2);
    check_all_windows(5, 8, 2, 2);
    check_all_windows(4, 8, 16, 1);
    check_all_windows(3, 2, 3, 4); /* windows that miss the image */
    check_all_windows(2, 3, 1, 4);
    check_all_windows(1, 1, 4, 2);
}

static void pixels_are_normalised_in_double(void **state) {
    (void)state;
    tn_image_format format = {.channels = 16};
    tn_image_format_normalise(&format, mean, deviation);
    for (int c = 0; c < 16; c++)
        for (int p = 0; p < 256; p++) {
            double value = (p / 255.0 - (double)mean[c]) / (double)deviation[c];
            assert_true(format.table[c][p] == (float)value);
        }
}

/* The documented words of the stream, taken from the block function itself. */
static void the_draw_is_the_documented_one(void **state) {
    (void)state;
    const uint64_t seed = 0x123456789abcdef0u;
    const uint32_t key[2] = {0x9abcdef0u, 0x12345678u};
    for (int epoch = 0; epoch < 3; epoch++)
        for (int sample = 0; sample < 500; sample++) {
            const uint32_t counter[4] = {0, (uint32_t)sample, (uint32_t)epoch, 3};
            uint32_t word[4];
            tn_philox(counter, key, word);
            tn_augmentation how = tn_augment_draw(seed, epoch, sample, 4, true);
            /* Rejections come once in 10^9 words, not among these. */
            assert_int_equal(how.dy, ((uint64_t)word[0] * 9) >> 32);
            assert_int_equal(how.dx, ((uint64_t)word[1] * 9) >> 32);
            assert_int_equal(how.flip, word[2] >> 31);
        }
}

static void all_windows_and_both_sides_are_drawn(void **state) {
    (void)state;
    int seen[9][9] = {{0}}, flips = 0;
    for (int sample = 0; sample < 10000; sample++) {
        tn_augmentation how = tn_augment_draw(5, 1, sample, 4, true),
                        straight = tn_augment_draw(5, 1, sample, 4, false);
        assert_in_range(how.dy, 0, 8);
        assert_in_range(how.dx, 0, 8);
        assert_false(straight.flip);
        assert_int_equal(straight.dy * 9 + straight.dx, how.dy * 9 + how.dx);
        seen[how.dy][how.dx]++;
        flips += how.flip;
    }
    /* 123.5 expected each, standard deviation 11; 5000 flips, 50. */
    for (int y = 0; y < 9; y++)
        for (int x = 0; x < 9; x++) assert_in_range(seen[y][x], 70, 180);
    assert_in_range(flips, 4750, 5250);
    tn_augmentation still = tn_augment_draw(5, 1, 0, 0, true);
    assert_int_equal(still.dy, 0);
    assert_int_equal(still.dx, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_window_of_every_shape),
        cmocka_unit_test(pixels_are_normalised_in_double),
        cmocka_unit_test(the_draw_is_the_documented_one),
        cmocka_unit_test(all_windows_and_both_sides_are_drawn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
