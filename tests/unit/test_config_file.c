/* The TOML subset of configuration files: what is read, and what is refused where. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/config_file.h"
#include "base/memory.h"
#include "taunet/options.h"

/* Writes each entry as "line:name_column:value_column kind name=value;" */
static tn_status record(void *context, const tn_config_entry *e) {
    return tn_string_printf(context, "%d:%d:%d %c %s=%s;", e->line, e->name_column, e->value_column,
                            "snbte"[e->kind], e -> name, e -> value);
}

static void expect_bytes(const char *bytes, size_t size, const char *entries) {
    tn_string seen = {0};
    assert_int_equal(tn_string_append(&seen, "", 0), TN_OK);
    if (tn_config_parse(bytes, size, "f", record, &seen) != TN_OK) fail_msg("%s: %s", bytes, tn_error());
    assert_string_equal(seen.data, entries);
    tn_string_free(&seen);
}

static void expect(const char *text, const char *entries) {
    expect_bytes(text, strlen(text), entries);
}

static void expect_error_bytes(const char *bytes, size_t size, const char *message) {
    tn_string seen = {0};
    assert_int_equal(tn_config_parse(bytes, size, "f", record, &seen), TN_ERR_USAGE);
    assert_string_equal(tn_error(), message);
    tn_string_free(&seen);
}

static void expect_error(const char *text, const char *message) {
    expect_error_bytes(text, strlen(text), message);
}

static void lines(void **state) {
    (void)state;
    expect("", "");
    expect("\n\n# comment\n   # another \xC3\xA9\n", "");
    expect("a = 1", "1:1:5 n a=1;");
    expect("a=1\nb=2\n", "1:1:3 n a=1;2:1:3 n b=2;");
    expect("a = 1\r\nb = 2\r\n", "1:1:5 n a=1;2:1:5 n b=2;");
    expect("\t micro_batch\t=\t8 # why\n", "1:3:17 n micro-batch=8;");
    expect("a = 1#x", "1:1:5 n a=1;");
    expect("\xEF\xBB\xBF"
           "a = 1",
           "1:1:5 n a=1;");
    expect("out-2_b = true\nc = false", "1:1:11 b out-2-b=true;2:1:5 b c=false;");
}

static void tables(void **state) {
    (void)state;
    expect("[all]\na = 1\n\t[[row]] # x\n[[row]]", "1:1:1 t all=;2:1:5 n a=1;3:2:2 e row=;4:1:1 e row=;");
    tn_options *options;
    assert_int_equal(tn_options_create("train", &options), TN_OK);
    assert_int_equal(tn_options_load_text(options, "[train]\n", 8, "f"), TN_ERR_USAGE);
    assert_string_equal(tn_error(), "f:1:1: tables are not supported; write 'name = value' lines");
    tn_options_free(options);
}

static void strings(void **state) {
    (void)state;
    expect("a = \"\"", "1:1:5 s a=;");
    expect("a = ''", "1:1:5 s a=;");
    expect("a = \"x # y\" # z", "1:1:5 s a=x # y;");
    expect("a = 'C:\\n \"q\"'", "1:1:5 s a=C:\\n \"q\";");
    expect("a = \"\\\"\\\\\\n\\t\\u0041\\u00e9\\u20AC\"", "1:1:5 s a=\"\\\n\tA\xC3\xA9\xE2\x82\xAC;");
    expect("a = \"it's\"", "1:1:5 s a=it's;");
    expect("a = \"\xF0\x9F\x98\x80\tb\"", "1:1:5 s a=\xF0\x9F\x98\x80\tb;");
}

static void numbers(void **state) {
    (void)state;
    expect("a = 0", "1:1:5 n a=0;");
    expect("a = -12", "1:1:5 n a=-12;");
    expect("a = +1_000_000", "1:1:5 n a=+1000000;");
    expect("a = 1.5e-4", "1:1:5 n a=1.5e-4;");
    expect("a = 6_0.2_5E+1_0", "1:1:5 n a=60.25E+10;");
    expect("a = 1e05", "1:1:5 n a=1e05;");
    static const char *const bad[] = {"01", "1_",  "1__0", ".5",    "5.",   "1e",         "1e+",  "1.e5",
                                      "-",  "+-1", "0x1",  "1.2.3", "1_.5", "1979-05-27", "-inf", "00.1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[64], message[200];
        snprintf(text, sizeof text, "a = %s", bad[i]);
        snprintf(message, sizeof message,
                 "f:1:5: '%s' is not a number; write it as 128, 0.5 or 1e-4, or quote text", bad[i]);
        expect_error(text, message);
    }
}

static void errors_name_the_place(void **state) {
    (void)state;
    expect_error("a = 1\nb", "f:2:2: expected '=' after 'b'");
    expect_error("a 1", "f:1:3: expected '=' after 'a'");
    expect_error("= 1", "f:1:1: expected the name of an option");
    expect_error("\xC3\xA9 = 1", "f:1:1: expected the name of an option");
    expect_error("a =", "f:1:4: the value of 'a' is missing");
    expect_error("a = # c", "f:1:5: the value of 'a' is missing");
    expect_error("a = 1 2", "f:1:7: unexpected text after the value of 'a'");
    expect_error("a = \"\xC3\xA9\xC3\xA9\" x", "f:1:10: unexpected text after the value of 'a'");
    expect_error("a = \"x\"y", "f:1:8: unexpected text after the value of 'a'");
    expect_error("a = tau", "f:1:5: text needs quotes: write \"tau\"");
    expect_error("a = inf", "f:1:5: text needs quotes: write \"inf\"");
    expect_error("a = \"x", "f:1:5: the closing \" is missing");
    expect_error("a = 'x\n'", "f:1:5: the closing ' is missing");
    expect_error("a = \"x\\\"", "f:1:5: the closing \" is missing");
    expect_error("a = \"\"\"x\"\"\"", "f:1:5: text over several lines is not supported");
    static const char *const headings[] = {"[train", "[]", "[ train ]", "[[train]", "[a.b]", "[\"a\"]", "["};
    for (size_t i = 0; i < sizeof headings / sizeof *headings; i++)
        expect_error(headings[i], "f:1:1: not the name of a table; write [name] or [[name]]");
    expect_error(" [train] a = 1", "f:1:10: unexpected text after table 'train'");
    expect_error("a = [1, 2]", "f:1:5: arrays and tables are not supported; write a list as \"1,2,3\"");
    expect_error("a = {b = 1}", "f:1:5: arrays and tables are not supported; write a list as \"1,2,3\"");
    expect_error("\"a\" = 1", "f:1:1: write the name without quotes");
    expect_error("a.b = 1", "f:1:2: expected '=' after 'a'");
#define ESCAPES "unknown escape; use \\\" \\\\ \\n \\t or \\uXXXX, or '...'"
    expect_error("a = \"\\q\"", "f:1:6: " ESCAPES);
    expect_error("a = \"x\\", "f:1:7: " ESCAPES);
    expect_error("a = \"\\u12G4\"", "f:1:6: \\u needs four hexadecimal digits");
    expect_error("a = \"\\u12", "f:1:6: \\u needs four hexadecimal digits");
    expect_error("a = \"\\u0000\"", "f:1:6: a NUL character is not allowed in text");
    expect_error("a = \"\\uD800\"", "f:1:6: \\uD800 is half a surrogate pair, not a character");
}

static void bytes_that_are_not_text(void **state) {
    (void)state;
    expect_error_bytes("a = \"x\0y\"", 9, "f:1:7: control character 0x00; only text is allowed here");
    expect_error_bytes("a = 1\n\0", 7, "f:2:1: control character 0x00; only text is allowed here");
    expect_error("a = 1 # \x7F", "f:1:9: control character 0x7F; only text is allowed here");
    expect_error("a = 1\rb = 2\n", "f:1:6: control character 0x0D; only text is allowed here");
    expect_error("# \xC3\xA9\xFF", "f:1:4: byte 0xFF is not UTF-8; save the file as UTF-8");
    expect_error("a = '\xED\xA0\x80'", "f:1:6: byte 0xED is not UTF-8; save the file as UTF-8");
}

static char *repeated(char c, size_t count) {
    char *text;
    assert_int_equal(tn_alloc(&text, count + 1, 1, "test"), TN_OK);
    memset(text, c, count);
    return text;
}

static void sizes_are_bounded(void **state) {
    (void)state;
    char *text = repeated('#', TN_CONFIG_BYTES_MAX + 1);
    expect_error_bytes(text, TN_CONFIG_BYTES_MAX + 1,
                       "f: larger than 1048576 bytes; is this a configuration file?");
    expect_error_bytes(text, TN_CONFIG_LINE_MAX + 1,
                       "f:1: a line longer than 32768 bytes; is this a configuration file?");
    expect_bytes(text, TN_CONFIG_LINE_MAX, "");
    for (size_t i = 1; i < TN_CONFIG_BYTES_MAX; i += 2) text[i] = '\n';
    expect_bytes(text, TN_CONFIG_BYTES_MAX, "");
    tn_free(text);
    char line[100];
    memset(line, 'n', sizeof line);
    memcpy(line + 63, "=1", 3);
    tn_string seen = {0};
    assert_int_equal(tn_config_parse(line, 65, "f", record, &seen), TN_OK);
    tn_string_free(&seen);
    memcpy(line + 63, "n=1", 4);
    expect_error(line, "f:1:1: the name is too long to be an option's");
}

static tn_status refuse(void *context, const tn_config_entry *e) {
    (void)e;
    ++*(int *)context;
    return tn_fail(TN_ERR_DATA, "no");
}

static void the_visitor_may_stop(void **state) {
    (void)state;
    int calls = 0;
    assert_int_equal(tn_config_parse("a=1\nb=2", 7, "f", refuse, &calls), TN_ERR_DATA);
    assert_string_equal(tn_error(), "no");
    assert_int_equal(calls, 1);
}

static void quoted_text_reads_back(void **state) {
    (void)state;
    tn_string line = {0}, seen = {0};
    char all[130];
    for (int i = 0; i < 127; i++) all[i] = (char)(i + 1);
    memcpy(all + 127, "\xC3\xA9", 3);
    assert_int_equal(tn_string_printf(&line, "a = "), TN_OK);
    assert_int_equal(tn_config_quote(&line, all), TN_OK);
    assert_int_equal(tn_config_parse(line.data, line.length, "f", record, &seen), TN_OK);
    assert_memory_equal(seen.data, "1:1:5 s a=", 10);
    assert_memory_equal(seen.data + 10, all, 129);
    tn_string_free(&line);
    tn_string_free(&seen);
}

static void files(void **state) {
    (void)state;
    char folder[] = "/tmp/taunet-config-XXXXXX", path[64], missing[64], message[200];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/c.toml", folder);
    snprintf(missing, sizeof missing, "%s/none", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs("a = 1\nb = x\n", file) >= 0);
    assert_int_equal(fclose(file), 0);
    tn_string seen = {0};
    assert_int_equal(tn_config_read(path, record, &seen), TN_ERR_USAGE);
    snprintf(message, sizeof message, "%s:2:5: text needs quotes: write \"x\"", path);
    assert_string_equal(tn_error(), message);
    assert_string_equal(seen.data, "1:1:5 n a=1;");
    tn_string_free(&seen);
    assert_int_equal(tn_config_read(missing, record, NULL), TN_ERR_IO);
    assert_non_null(strstr(tn_error(), "none: cannot open the configuration file: No such file"));
    assert_int_equal(tn_config_read(folder, record, NULL), TN_ERR_IO);
    assert_non_null(strstr(tn_error(), "cannot read the configuration file: Is a directory"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines),
        cmocka_unit_test(tables),
        cmocka_unit_test(strings),
        cmocka_unit_test(numbers),
        cmocka_unit_test(errors_name_the_place),
        cmocka_unit_test(bytes_that_are_not_text),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(the_visitor_may_stop),
        cmocka_unit_test(quoted_text_reads_back),
        cmocka_unit_test(files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
