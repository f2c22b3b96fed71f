/* Recipes: any bytes are a recipe, with a plan at each of its scales and results that can be printed, or an
 * error of one line. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "report/table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds) {
    if (!holds) abort();
}

static void require_error(tn_status status) {
    require(status != TN_OK && *tn_error() && !strpbrk(tn_error(), "\n\r"));
}

/* Results of a plan none of whose runs is there. */
static void print_results(const tn_table_plan *plan, const tn_options *options) {
    tn_table table = {.plan = plan, .options = options, .folder = "/nowhere"};
    tn_string text = {0};
    require(tn_alloc(&table.results, (size_t)plan->run_count, sizeof *table.results, "results") == TN_OK);
    for (int i = 0; i < plan->run_count; i++) {
        require(tn_run_record_open("/nowhere/at/all", &table.results[i].record) == TN_OK);
        require(tn_strdup(&table.results[i].reason, "no reason") == TN_OK);
    }
    tn_status status = tn_table_print_markdown(&table, "", &text);
    if (status == TN_OK) status = tn_table_print_csv(&table, &text);
    if (status == TN_OK) status = tn_table_print_json(&table, &text);
    for (const tn_section *s = NULL;
         (s = tn_recipe_next(plan->recipe, TN_SECTION_PLOT, s)) && status == TN_OK;) {
        tn_string name = {0};
        status = tn_table_plot(&table, s, &name, &text);
        tn_string_free(&name);
    }
    if (status != TN_OK) require_error(status);
    tn_string_free(&text);
    for (int i = 0; i < plan->run_count; i++) {
        tn_run_record_free(table.results[i].record);
        tn_free(table.results[i].reason);
    }
    tn_free(table.results);
}

static void check_scale(const tn_recipe *recipe, const char *scale) {
    tn_options *options;
    tn_table_plan *plan;
    require(tn_options_create("table", &options) == TN_OK);
    require(tn_options_set(options, "scale", scale) == TN_OK);
    tn_status status = tn_table_plan_create(recipe, "fuzz", options, &plan);
    if (status != TN_OK)
        require_error(status);
    else if (plan->run_count <= 64)
        print_results(plan, options);
    tn_table_plan_free(plan);
    tn_options_free(options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tn_recipe *recipe;
    size_t before = tn_memory_in_use();
    char *text = malloc(size ? size : 1); /* no larger than the text, so that reading on is seen */
    if (!text) return 0;
    memcpy(text, data, size);
    tn_status status = tn_recipe_parse(text, size, "fuzz", &recipe);
    if (status == TN_OK) {
        check_scale(recipe, "full");
        check_scale(recipe, "quick");
    } else {
        require_error(status);
    }
    tn_recipe_free(recipe);
    free(text);
    require(tn_memory_in_use() == before);
    return 0;
}
