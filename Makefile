# Entry points for people and for CI. Everything they do is in tools/setup and tools/ci/; all output goes to build/.
#   JOBS=N           parallel jobs (default: all cores)
#   FUZZ_SECONDS=N   time for each fuzz target (default 30)
#   TESTS=REGEX      only the tests whose ctest name matches
.DEFAULT_GOAL := help
FUZZ_SECONDS ?= 30
export PROMPT ?= What is 12 + 30?
TESTS ?=
filter = $(if $(TESTS),-R '$(TESTS)')

.PHONY: run test test-asan test-tsan test-arm64 test-riscv64 test-haswell fuzz coverage soak bench format lint ci setup setup-all clean help

run: setup  ## build, serve the embedded model, and ask it a question over the API
	@tools/ci/build release dougong
	@tools/run_demo "$$PROMPT"

test: setup  ## build and run every test; the last line counts them
	@tools/ci/build release
	@tools/ci/run_tests build/release $(filter)

test-asan: setup  ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/ci/stage asan $(filter)

test-tsan: setup  ## the tests under ThreadSanitizer
	@tools/ci/stage tsan $(filter)

test-arm64: setup-all  ## cross-build for aarch64 and run the tests under qemu-user
	@tools/ci/stage arm64 $(filter)

test-riscv64: setup-all  ## cross-build for riscv64 and run the tests under qemu-user
	@tools/ci/stage riscv64 $(filter)

test-haswell: setup-all  ## verify the oracles with the release binary on an emulated CPU without AVX-512
	@tools/ci/stage haswell

fuzz: setup-all  ## run each libFuzzer target for FUZZ_SECONDS
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tools/ci/stage fuzz

coverage: setup-all  ## line coverage of src/text, src/io and src/model; fails below 85 %
	@tools/ci/coverage

soak: setup  ## ten minutes of hostile clients against a server (SECONDS=N)
	@tools/ci/build release dougong
	@tools/ci/soak

bench: setup  ## build and run the benchmarks
	@tools/ci/build release
	@tools/ci/run_benchmarks

format: setup-all  ## format the C++ sources in place
	@tools/ci/format

lint: setup-all  ## check the format and run clang-tidy
	@tools/ci/lint

ci:  ## what CI runs
	@.ci/run

setup:
	@tools/setup

setup-all:
	@tools/setup --all

clean:  ## remove everything that was built (the npm packages stay)
	@for folder in build/*; do case "$$folder" in build/npm*) ;; *) rm -rf "$$folder" ;; esac; done

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'
