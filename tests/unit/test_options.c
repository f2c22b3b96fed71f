/* Options: the table, the command line, configuration files, resuming, help. */
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/option_table.h"
#include "taunet/options.h"

static tn_options *create(const char *command) {
    tn_options *options;
    if (tn_options_create(command, &options) != TN_OK) fail_msg("%s", tn_error());
    return options;
}

/* Parses arguments separated by single blanks ("~" stands for a blank inside of one). */
static tn_status parse(tn_options *options, const char *line) {
    static char copy[8192];
    char *argv[128];
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        for (char *c = word; *c; c++)
            if (*c == '~') *c = ' ';
        assert_true(argc < 128);
        argv[argc++] = word;
    }
    return tn_options_parse(options, argc, argv);
}

static tn_options *parsed(const char *command, const char *line) {
    tn_options *options = create(command);
    if (parse(options, line) != TN_OK) fail_msg("%s: %s", line, tn_error());
    return options;
}

static void expect_error(const char *command, const char *line, const char *message) {
    tn_options *options = create(command);
    assert_int_equal(parse(options, line), TN_ERR_USAGE);
    assert_string_equal(tn_error(), message);
    tn_options_free(options);
}

static void rows_are_sound(void **state) {
    (void)state;
    for (int c = 0; c < tn_command_count; c++) {
        const tn_command *command = &tn_command_rows[c];
        for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
            const tn_option *found;
            assert_int_equal(tn_option_find(command, "--", row->name, &found), TN_OK);
            assert_ptr_equal(found, row); /* names are unique within a command */
            assert_int_equal(strspn(row->name, "abcdefghijklmnopqrstuvwxyz-"), strlen(row->name));
            assert_true(row->required == (row->required & row->commands));
            if (row->required & command->bit) assert_int_equal(row->type, TN_OPTION_TEXT);
            if (row->type == TN_OPTION_INT)
                assert_true(row->min >= INT_MIN && row->max <= INT_MAX && row->max > 0);
            if (row->type == TN_OPTION_NUMBER || row->type == TN_OPTION_LIST)
                assert_true(row->max > row->min);
            if (row->type == TN_OPTION_SHAPE) assert_true(row->max > 0 && row->max <= INT_MAX);
            if (row->type == TN_OPTION_CHOICE) assert_non_null(row->choices);
        }
    }
}

static void defaults_are_those_of_the_contract(void **state) {
    (void)state;
    tn_options *o = create("train");
    assert_string_equal(o->model, "resnet20");
    assert_string_equal(o->variant, "tau");
    assert_string_equal(o->tau, "");
    assert_int_equal(o->tau_sharing, TN_TAU_SHARED);
    assert_true(o->bn_shortcut && !o->zero_init_last_gamma && o->shuffle && o->deterministic);
    assert_int_equal(o->epochs, 200);
    assert_int_equal(o->steps, 0);
    assert_int_equal(o->batch, 128);
    assert_int_equal(o->micro_batch, 0);
    assert_int_equal(o->threads, 0);
    assert_true(o->lr == 0.1 && o->momentum == 0.9 && o->weight_decay == 1e-4 && o->scalar_lr == 0.1);
    assert_string_equal(o->schedule, "step:100,150:0.1");
    assert_true(o->warmup == 0 && o->mixup == 0 && o->label_smoothing == 0);
    assert_int_equal(o->augment, TN_AUGMENT_STANDARD);
    assert_true(o->seed == 0);
    assert_string_equal(o->device, "auto");
    assert_int_equal(o->precision, TN_PRECISION_FP32);
    assert_int_equal(o->keep, 0);
    assert_int_equal(o->mean.count, 0);
    assert_false(o->resume || o->overwrite || o->print_config || o->help);
    for (int i = 0; i < tn_option_count; i++) assert_false(o->given[i]);
    tn_options_free(o);
    o = create("bench");
    assert_int_equal(o->steps, 20);
    assert_int_equal(o->input.channels, 0);
    assert_int_equal(o->classes, 0);
    assert_int_equal(tn_options_set(o, "input", "3x224x64"), TN_OK);
    assert_true(o->input.channels == 3 && o->input.height == 224 && o->input.width == 64);
    assert_int_equal(tn_options_set(o, "input", "auto"), TN_OK);
    assert_true(o->input.channels == 0 && o->input.height == 0 && o->input.width == 0);
    tn_options_free(o);
    o = create("eval");
    assert_string_equal(o->model, "");
    assert_string_equal(o->variant, "");
    tn_options_free(o);
    tn_options_free(NULL);
}

static void every_type_is_read(void **state) {
    (void)state;
    tn_options *o =
        parsed("train", "--model resnet110 --batch=64 --lr 5e-2 --tau 1/sqrt(L) --tau-sharing per-block "
                        "--precision bf16 --augment none --shuffle no --resume --mean 0.5,.25,1e-3 "
                        "--std=1 --seed 9223372036854775807 --threads auto --micro-batch 8 --init= "
                        "--weight_decay 0 --overwrite --bn-shortcut=false --device cuda:3 --out a~b");
    assert_string_equal(o->model, "resnet110");
    assert_int_equal(o->batch, 64);
    assert_true(o->lr == 0.05 && o->weight_decay == 0);
    assert_string_equal(o->tau, "1/sqrt(L)");
    assert_int_equal(o->tau_sharing, TN_TAU_PER_BLOCK);
    assert_int_equal(o->precision, TN_PRECISION_BF16);
    assert_int_equal(o->augment, TN_AUGMENT_NONE);
    assert_true(!o->shuffle && o->resume && o->overwrite && !o->bn_shortcut);
    assert_int_equal(o->mean.count, 3);
    assert_true(o->mean.values[0] == 0.5f && o->mean.values[1] == 0.25f && o->mean.values[2] == 1e-3f);
    assert_int_equal(o->std.count, 1);
    assert_true(o->seed == INT64_MAX);
    assert_int_equal(o->threads, 0);
    assert_int_equal(o->micro_batch, 8);
    assert_string_equal(o->init, "");
    assert_string_equal(o->device, "cuda:3");
    assert_string_equal(o->out, "a b");
    assert_true(tn_options_is_given(o, "weight-decay") && tn_options_is_given(o, "init"));
    assert_false(tn_options_is_given(o, "epochs") || tn_options_is_given(o, "no-such-option"));
    tn_options_free(o);
    o = parsed("info", "--input 1x28x29 --classes 2 --json");
    assert_true(o->input.channels == 1 && o->input.height == 28 && o->input.width == 29 && o->json);
    tn_options_free(o);
}

static void the_last_one_wins(void **state) {
    (void)state;
    tn_options *o = parsed("train", "--lr 1 --resume --lr 2 --resume no --out a --out bb");
    assert_true(o->lr == 2 && !o->resume);
    assert_string_equal(o->out, "bb");
    tn_options_free(o);
}

static void command_line_errors(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"--bacth 3", "unknown option --bacth; did you mean --batch?"},
        {"--momentun=1", "unknown option --momentun; did you mean --momentum?"},
        {"--qqq", "unknown option --qqq; 'taunet help train' lists the options of train"},
        {"--checkpoint x",
         "--checkpoint is an option of eval, theory, not of train; 'taunet help train' lists those"},
        {"--classes 3",
         "--classes is an option of init, info, bench, not of train; 'taunet help train' lists those"},
        {"cifar10", "unexpected argument \"cifar10\"; options are written --name value"},
        {"-h", "unexpected argument \"-h\"; options are written --name value"},
        {"--", "unexpected argument \"--\"; options are written --name value"},
        {"--batch", "--batch needs a value: --batch N"},
        {"--out --resume",
         "--out needs a value: --out DIR; for a value that starts with -- write --out=--resume"},
        {"--batch 0", "--batch \"0\": out of range; allowed: from 1 to 1048576"},
        {"--batch 99999999999999999999",
         "--batch \"99999999999999999999\": out of range; allowed: from 1 to 1048576"},
        {"--batch 12x", "--batch \"12x\": not a whole number; allowed: from 1 to 1048576"},
        {"--batch 1e3", "--batch \"1e3\": not a whole number; allowed: from 1 to 1048576"},
        {"--batch=", "--batch \"\": not a whole number; allowed: from 1 to 1048576"},
        {"--threads 1025", "--threads \"1025\": out of range; allowed: auto or from 1 to 1024"},
        {"--threads -1", "--threads \"-1\": out of range; allowed: auto or from 1 to 1024"},
        {"--seed -1", "--seed \"-1\": out of range; allowed: from 0 to 9223372036854775807"},
        {"--seed 9223372036854775808",
         "--seed \"9223372036854775808\": out of range; allowed: from 0 to 9223372036854775807"},
        {"--lr -0.1", "--lr \"-0.1\": out of range; allowed: at least 0"},
        {"--lr nan", "--lr \"nan\": not a number; allowed: at least 0"},
        {"--lr 1e999", "--lr \"1e999\": not a number; allowed: at least 0"},
        {"--momentum 1", "--momentum \"1\": out of range; allowed: at least 0 and below 1"},
        {"--shuffle maybe", "--shuffle \"maybe\": neither yes nor no; allowed: yes or no"},
        {"--variant tua", "--variant \"tua\": no such choice (did you mean tau?); allowed: bn, bn-tau, tau, "
                          "fixup, alpha, skipinit, plain"},
        {"--precision fp8", "--precision \"fp8\": no such choice; allowed: fp32, tf32, bf16"},
        {"--std 1,0,1", "--std \"1,0,1\": a number is out of range; allowed: each above 0"},
        {"--mean 1,", "--mean \"1,\": a number is missing after the last comma"},
        {"--mean 1,,2", "--mean \"1,,2\": not a list of numbers such as 0.5,0.4"},
        {"--mean 1e39", "--mean \"1e39\": a number is out of range"},
        {"--mean 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17",
         "--mean \"1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17\": more than 16 numbers"},
        {"--tau 1/sqr(L)",
         "--tau \"1/sqr(L)\": unknown name 'sqr' at column 3; use numbers, L, + - * / ^, sqrt() "
         "and parentheses"},
        {"--schedule step:9", "--schedule \"step:9\": the factor is missing; use constant, cosine or "
                              "step:EPOCH,EPOCH,...:FACTOR such as step:100,150:0.1"},
        {"--device gpu", "--device \"gpu\": no such device; use auto, cpu, cuda or cuda:N"},
        {"--device cuda:", "--device \"cuda:\": no such device; use auto, cpu, cuda or cuda:N"},
        {"--device cuda:1x", "--device \"cuda:1x\": no such device; use auto, cpu, cuda or cuda:N"},
        {"--device=", "--device \"\": empty; leave the option out for its default"},
        {"--out \xFF", "--out \"?\": not UTF-8, which config.toml needs; use another name"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_error("train", cases[i][0], cases[i][1]);
}

static void errors_of_other_commands(void **state) {
    (void)state;
    expect_error("bench", "--epochs 3",
                 "--epochs is an option of train, not of bench; 'taunet help bench' lists those");
    expect_error("info", "--input 3x32",
                 "--input \"3x32\": not of the form CxHxW; allowed: auto or each from 1 to 4096");
    expect_error("info", "--input 3x32x0",
                 "--input \"3x32x0\": a size is out of range; allowed: auto or each from 1 to 4096");
    expect_error("info", "--input 3x32x32x",
                 "--input \"3x32x32x\": not of the form CxHxW; allowed: auto or each from 1 to 4096");
    tn_options *o;
    assert_int_equal(tn_options_create("trian", &o), TN_ERR_USAGE);
    assert_string_equal(tn_error(), "unknown command 'trian'; did you mean 'train'?");
    assert_null(o);
    assert_int_equal(tn_options_create("xyzzy", &o), TN_ERR_USAGE);
    assert_string_equal(tn_error(), "unknown command 'xyzzy'; 'taunet help' lists the commands");
}

static void a_refused_value_changes_nothing(void **state) {
    (void)state;
    tn_options *o = parsed("train", "--tau 1/L --batch 7 --mean 1,2");
    assert_int_equal(tn_options_set(o, "tau", "1/"), TN_ERR_USAGE);
    assert_int_equal(tn_options_set(o, "batch", "0"), TN_ERR_USAGE);
    assert_int_equal(tn_options_set(o, "mean", "1,x"), TN_ERR_USAGE);
    assert_int_equal(tn_options_set(o, "lr", "x"), TN_ERR_USAGE);
    assert_string_equal(o->tau, "1/L");
    assert_int_equal(o->batch, 7);
    assert_int_equal(o->mean.count, 2);
    assert_false(tn_options_is_given(o, "lr"));
    char text[4200];
    memset(text, 'x', sizeof text);
    text[4097] = 0;
    assert_int_equal(tn_options_set(o, "out", text), TN_ERR_USAGE);
    assert_non_null(strstr(tn_error(), "longer than 4096 bytes"));
    text[4096] = 0;
    assert_int_equal(tn_options_set(o, "out", text), TN_OK);
    tn_options_free(o);
}

static tn_status load(tn_options *o, const char *text) {
    return tn_options_load_text(o, text, strlen(text), "f");
}

static void files_are_read(void **state) {
    (void)state;
    tn_options *o = create("train");
    assert_int_equal(load(o, "lr = 1\nmicro_batch = \"auto\"\nout = 'r'\nshuffle = false\ntau = 0.25\n"
                             "bn-shortcut = \"no\"\nmean = \"0.5,0.5\"\nbatch = \"12\"\nepochs = 1_000\n"),
                     TN_OK);
    assert_true(o->lr == 1 && !o->shuffle && !o->bn_shortcut);
    assert_string_equal(o->tau, "0.25");
    assert_string_equal(o->out, "r");
    assert_int_equal(o->mean.count, 2);
    assert_int_equal(o->batch, 12);
    assert_int_equal(o->epochs, 1000);
    assert_true(tn_options_is_given(o, "tau"));
    tn_options_free(o);
}

static void file_errors(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"lr = 1\n bacth = 3", "f:2:2: unknown option bacth; did you mean batch?"},
        {"checkpoint = 'x'",
         "f:1:1: checkpoint is an option of eval, theory, not of train; 'taunet help train' lists those"},
        {"batch = 0", "f:1:9: --batch \"0\": out of range; allowed: from 1 to 1048576"},
        {"batch = 1.0", "f:1:9: --batch \"1.0\": not a whole number; allowed: from 1 to 1048576"},
        {"shuffle = 1", "f:1:11: --shuffle \"1\": neither yes nor no; allowed: yes or no"},
        {"out = true", "f:1:7: 'out' is not a yes or no option; it takes DIR"},
        {"lr = 1\nlr = 2", "f:2:1: 'lr' was already set in line 1; keep one of the two"},
        {"save_every = 1\nsave-every = 2",
         "f:2:1: 'save-every' was already set in line 1; keep one of the two"},
        {"resume = true", "f:1:1: 'resume' belongs on the command line, not into a file"},
        {"config = 'g'", "f:1:1: 'config' belongs on the command line, not into a file"},
        {"tau = '1/x'",
         "f:1:7: --tau \"1/x\": unknown name 'x' at column 3; use numbers, L, + - * / ^, sqrt() and "
         "parentheses"},
        {"lr", "f:1:3: expected '=' after 'lr'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_options *o = create("train");
        assert_int_equal(load(o, cases[i][0]), TN_ERR_USAGE);
        assert_string_equal(tn_error(), cases[i][1]);
        tn_options_free(o);
    }
}

static void config_is_read_at_its_place(void **state) {
    (void)state;
    char folder[] = "/tmp/taunet-options-XXXXXX", path[64], line[200];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/c.toml", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs("lr = 5\nbatch = 6\n", file) >= 0);
    assert_int_equal(fclose(file), 0);
    snprintf(line, sizeof line, "--lr 1 --config %s --batch 7 --config %s --batch 8", path, path);
    tn_options *o = parsed("train", line);
    assert_true(o->lr == 5);
    assert_int_equal(o->batch, 8);
    assert_string_equal(o->config, path);
    tn_options_free(o);
    o = create("train");
    assert_int_equal(tn_options_load(o, "/nonexistent/c.toml"), TN_ERR_IO);
    tn_options_free(o);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

/* Every option differs from its default; what is printed reads back to the same bits. */
static void saved_config_reads_back(void **state) {
    (void)state;
    tn_options *a = parsed(
        "train",
        "--model resnet8 --variant fixup --tau L^-0.25 --tau-sharing per-block --bn-shortcut no "
        "--zero-init-last-gamma --width 64 --depth 9 --loss squared --train-ends --probe norms "
        "--data synthetic:3x8x8:10:64 --augment none --mixup 0.3 "
        "--label-smoothing 0.1 --shuffle no --mean 0.4914,0.1,1e-20 --std 0.3333333333,3e38,1 "
        "--image-size 48 --resize 50 --on-bad-sample skip --limit-batches 3 --epochs 7 --steps 9 --batch 5 "
        "--micro-batch 2 --ema 0.9375 --lr 0.1000000001 "
        "--momentum 0.3333333333333333148 --weight-decay 5e-324 --scalar-lr 123456789 --schedule cosine "
        "--warmup 2.5 --seed 9223372036854775807 --init a\\b\"c --device cuda:12 --threads 3 "
        "--precision tf32 --deterministic no --out \xC3\xA9~\t\x01\x7F --save-every 4 --keep 11 "
        "--eval-every 12 --log-every 13 --profile p --resume --overwrite");
    tn_options *b = create("train"), *untouched = create("train");
    char *first, *second;
    assert_int_equal(tn_options_print_config(a, &first), TN_OK);
    assert_memory_equal(first, "# taunet ", 9);
    if (load(b, first) != TN_OK) fail_msg("%s\n%s", tn_error(), first);
    assert_int_equal(tn_options_print_config(b, &second), TN_OK);
    assert_string_equal(first, second);
    const tn_command *train;
    assert_int_equal(tn_command_find("train", &train), TN_OK);
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(train, row)); row++) {
        if (row->command_line_only) continue;
        tn_string x = {0}, y = {0};
        assert_int_equal(tn_option_print(row, b, &x), TN_OK);
        assert_int_equal(tn_option_print(row, untouched, &y), TN_OK);
        if (strcmp(x.data, y.data) == 0) fail_msg("the test leaves --%s at its default", row->name);
        tn_string_free(&x);
        tn_string_free(&y);
        assert_true(b->given[row - tn_option_rows]);
    }
    assert_true(a->lr == b->lr && a->momentum == b->momentum && a->weight_decay == b->weight_decay);
    assert_true(a->weight_decay > 0 && a->seed == b->seed);
    assert_memory_equal(&a->mean, &b->mean, sizeof a->mean);
    assert_memory_equal(&a->std, &b->std, sizeof a->std);
    assert_string_equal(a->out, b->out);
    assert_string_equal(a->init, "a\\b\"c");
    assert_false(b->resume || b->overwrite);
    tn_options_free_text(first);
    tn_options_free_text(second);
    tn_options_free(a);
    tn_options_free(b);
    tn_options_free(untouched);
}

static void saved_config_looks_like_toml(void **state) {
    (void)state;
    tn_options *o = parsed("train", "--lr 1 --out r");
    char *text;
    assert_int_equal(tn_options_print_config(o, &text), TN_OK);
    assert_non_null(strstr(text, "\n# model\nmodel = \"resnet20\"\nvariant = \"tau\"\ntau = \"\"\n"));
    assert_non_null(strstr(text, "\nlr = 1.0\n"));
    assert_non_null(strstr(text, "\nbatch = 128\nmicro-batch = \"auto\"\n"));
    assert_non_null(strstr(text, "\nshuffle = true\n"));
    assert_non_null(strstr(text, "\nseed = 0\n"));
    assert_null(strstr(text, "resume"));
    tn_options_free_text(text);
    tn_options_free(o);
}

static void required_options(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"train", "--out r",
         "train needs --data SPEC (cifar10:DIR, cifar100:DIR, mnist:DIR, "
         "folder:DIR, webdataset:DIR, synthetic:CxHxW:CLASSES:COUNT)"},
        {"train", "--data d", "train needs --out DIR (folder of the run)"},
        {"train", "--data d --out=", "train needs --out DIR (folder of the run)"},
        {"eval", "--data d", "eval needs --checkpoint FILE (safetensors file with the weights)"},
        {"init", "", "init needs --out FILE (safetensors file to write)"},
        {"train", "--data d --out r --resume --overwrite",
         "--resume and --overwrite exclude each other; give one of them"},
        {"train", "--data d --out r --mean 1,2 --std 1",
         "--mean has 2 numbers and --std has 1; give one a channel to both"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_options *o = parsed(cases[i][0], cases[i][1]);
        assert_int_equal(tn_options_check(o), TN_ERR_USAGE);
        assert_string_equal(tn_error(), cases[i][2]);
        tn_options_free(o);
    }
    tn_options *o = parsed("train", "--data d --out r --mean 1,2");
    assert_int_equal(tn_options_check(o), TN_OK);
    tn_options_free(o);
    o = create("info");
    assert_int_equal(tn_options_check(o), TN_OK);
    tn_options_free(o);
}

#define RUN "--data cifar10:/data --out runs/a --lr 0.2 --epochs 10 --mean 0.5,0.5,0.5"

static void resuming_takes_what_may_change(void **state) {
    (void)state;
    tn_options *run = parsed("train", RUN);
    tn_options *now =
        parsed("train", "--resume --out runs/b --epochs 20 --threads 3 --device cpu --data cifar10:/scratch "
                        "--lr 2e-1 --mean 0.50,0.5,0.5 --log-every 1");
    if (tn_options_resume(run, now) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(run->epochs, 20);
    assert_int_equal(run->threads, 3);
    assert_int_equal(run->log_every, 1);
    assert_string_equal(run->device, "cpu");
    assert_string_equal(run->data, "cifar10:/scratch");
    assert_string_equal(run->out, "runs/b");
    assert_true(run->lr == 0.2 && run->resume);
    assert_int_equal(run->batch, 128);
    tn_options_free(run);
    tn_options_free(now);
}

static void resuming_refuses_other_mathematics(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {RUN, "--lr 0.1",
         "--lr \"0.1\": the run that --resume continues has \"0.2\"; leave --lr out, or start a new run in "
         "another --out"},
        /* An option that was given counts even where its value is the default. */
        {RUN, "--data cifar100:/data",
         "--data \"cifar100:/data\": the run that --resume continues has \"cifar10:/data\"; leave --data "
         "out, or start "
         "a new run in another --out"},
        {"--data synthetic:3x8x8:10:64", "--data synthetic:3x8x8:10:65",
         "--data \"synthetic:3x8x8:10:65\": the run that --resume continues has \"synthetic:3x8x8:10:64\"; "
         "leave --data "
         "out, or start a new run in another --out"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_options *run = parsed("train", cases[i][0]), *now = parsed("train", cases[i][1]);
        assert_int_equal(tn_options_resume(run, now), TN_ERR_USAGE);
        assert_string_equal(tn_error(), cases[i][2]);
        tn_options_free(run);
        tn_options_free(now);
    }
    static const char *const fixed[] = {"--model resnet8",
                                        "--variant bn",
                                        "--tau 1",
                                        "--tau-sharing per-block",
                                        "--bn-shortcut no",
                                        "--zero-init-last-gamma",
                                        "--augment none",
                                        "--mixup 1",
                                        "--label-smoothing 0.1",
                                        "--shuffle no",
                                        "--mean 1",
                                        "--std 1",
                                        "--batch 1",
                                        "--momentum 0",
                                        "--weight-decay 0",
                                        "--scalar-lr 1",
                                        "--schedule cosine",
                                        "--schedule step:9:0.1",
                                        "--warmup 1",
                                        "--seed 1",
                                        "--init x",
                                        "--precision bf16"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        tn_options *run = parsed("train", RUN), *now = parsed("train", fixed[i]);
        if (tn_options_resume(run, now) != TN_ERR_USAGE) fail_msg("%s must not change", fixed[i]);
        tn_options_free(run);
        tn_options_free(now);
    }
}

static void help_shows_the_table(void **state) {
    (void)state;
    char *text, flag[64];
    for (int c = -1; c < tn_command_count; c++) {
        const tn_command *command = c < 0 ? NULL : &tn_command_rows[c];
        assert_int_equal(tn_options_help(command ? command->name : NULL, &text), TN_OK);
        for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
            size_t length = strcspn(line, "\n");
            assert_int_equal(line[length], '\n'); /* the last line ends too */
            if (length > 100) fail_msg("%.*s", (int)length, line);
            if (length) assert_int_not_equal(line[length - 1], ' ');
        }
        for (int i = 0; i < tn_command_count; i++)
            if (!command) assert_non_null(strstr(text, tn_command_rows[i].help));
        for (const tn_option *row = tn_option_rows; command && (row = tn_option_next(command, row)); row++) {
            snprintf(flag, sizeof flag, "\n  --%s", row->name);
            assert_non_null(strstr(text, flag));
        }
        tn_options_free_text(text);
    }
    assert_int_equal(tn_options_help("train", &text), TN_OK);
    assert_non_null(strstr(
        text, "  --momentum X                momentum of SGD (at least 0 and below 1; default 0.9)\n"));
    assert_non_null(strstr(text, "  --resume                    continue the run in --out (default no)\n"));
    tn_options_free_text(text);
    assert_int_equal(tn_options_help("evl", &text), TN_ERR_USAGE);
    assert_string_equal(tn_error(), "unknown command 'evl'; did you mean 'eval'?");
    assert_null(text);
}

/* Everything above in small; returns the first failure. */
static tn_status use_everything(void) {
    tn_options *a = NULL, *b = NULL;
    char *text = NULL, *help = NULL;
    tn_status status = tn_options_create("train", &a);
    if (status == TN_OK) status = parse(a, "--tau 1/L --out r --lr 3 --mean 1,2");
    if (status == TN_OK) status = tn_options_print_config(a, &text);
    if (status == TN_OK) status = tn_options_create("train", &b);
    if (status == TN_OK) status = tn_options_load_text(b, text, strlen(text), "f");
    if (status == TN_OK) status = tn_options_resume(b, a);
    if (status == TN_OK) status = tn_options_help("train", &help);
    tn_options_free(a);
    tn_options_free(b);
    tn_options_free_text(text);
    tn_options_free_text(help);
    return status;
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    long n = 1;
    for (;; n++) {
        tn_memory_fail_at(n);
        tn_status status = use_everything();
        tn_memory_fail_at(0);
        assert_int_equal(tn_memory_in_use(), before);
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
    }
    assert_true(n > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_sound),
        cmocka_unit_test(defaults_are_those_of_the_contract),
        cmocka_unit_test(every_type_is_read),
        cmocka_unit_test(the_last_one_wins),
        cmocka_unit_test(command_line_errors),
        cmocka_unit_test(errors_of_other_commands),
        cmocka_unit_test(a_refused_value_changes_nothing),
        cmocka_unit_test(files_are_read),
        cmocka_unit_test(file_errors),
        cmocka_unit_test(config_is_read_at_its_place),
        cmocka_unit_test(saved_config_reads_back),
        cmocka_unit_test(saved_config_looks_like_toml),
        cmocka_unit_test(required_options),
        cmocka_unit_test(resuming_takes_what_may_change),
        cmocka_unit_test(resuming_refuses_other_mathematics),
        cmocka_unit_test(help_shows_the_table),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
