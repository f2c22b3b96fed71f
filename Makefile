# taunet: `make help` lists the targets.
VERSION := 0.1.0
PREFIX ?= /usr/local
BUILD ?= build
CC = gcc
# Flags: C11 without extensions of the language; floating point is never contracted or reordered.
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wcast-qual
OPT ?= -O3
CPPFLAGS := -Iinclude -Isrc -I. -D_GNU_SOURCE -DTN_VERSION='"$(VERSION)"'
CFLAGS := -std=c11 $(OPT) -g -fPIC -fopenmp -ffp-contract=off $(WARN) $(SANITIZE)
LDLIBS := -ldnnl -ljansson -lxxhash -lz -lpthread -lm
LDFLAGS := -fopenmp $(SANITIZE)

LIB_SRC := $(sort $(wildcard src/base/*.c src/io/*.c src/data/*.c src/model/*.c src/engine/*.c src/backend/*.c src/backend/*/*.c src/train/*.c))
CLI_SRC := $(sort $(wildcard src/cli/*.c))
TEST_SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$(BUILD)/%.o)
SUPPORT_OBJ := $(TEST_SUPPORT_SRC:%.c=$(BUILD)/%.o)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)

all: $(BUILD)/libtaunet.a $(BUILD)/libtaunet.so $(BUILD)/taunet ## build the library and the program

$(BUILD)/libtaunet.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^
$(BUILD)/libtaunet.so: $(LIB_OBJ)
	$(CC) -shared -Wl,-soname,libtaunet.so.0 -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/taunet: $(CLI_OBJ) $(BUILD)/libtaunet.a
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/unit/%: $(BUILD)/tests/unit/%.o $(SUPPORT_OBJ) $(BUILD)/libtaunet.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS) -lcmocka

unit: $(UNIT_BIN) ## build and run the unit tests alone
	@for t in $(UNIT_BIN); do echo "== $$t"; $$t || exit 1; done

clean: ## remove the build
	rm -rf $(BUILD) build-*
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.PHONY: all unit clean help
