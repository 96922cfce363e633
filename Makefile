# `make` lists what there is to do. Everything that the targets need beyond Go is said where it is missing.

GO      ?= go
PKGS    := ./...
BUILD   := .build
LINT    := $(GO) tool -modfile=internal/tools/go.mod golangci-lint
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X main.version=$(VERSION))

# The race detector needs cgo and a C compiler.
CC_FOUND := $(shell command -v $(or $(CC),cc) 2>/dev/null)
RACE     := $(if $(CC_FOUND),-race)

FUZZTIME ?= 30s

.DEFAULT_GOAL := help
.PHONY: help build run demo test soak race fuzz lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

build: ## build ./instantmirror
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o instantmirror ./cmd/instantmirror

run: build ## serve fedora, centos and rpmfusion on :8080 into ./mirror
	./instantmirror serve --listen :8080 --root ./mirror --profile fedora --profile centos --profile rpmfusion

demo: build ## see it work without a line: miss, hit, upstream changed, upstream gone
	$(GO) run ./internal/mirrortest/demo -binary ./instantmirror

test: ## all tests that this machine can run, and what was skipped
	@mkdir -p $(BUILD)
	@: >$(BUILD)/skipped
	@test -n "$(RACE)" || echo "make test: no C compiler, so without the race detector (apt-get install gcc libc6-dev)"
	@INSTANTMIRROR_SKIPPED=$(CURDIR)/$(BUILD)/skipped $(GO) test -count=1 -timeout 14m $(RACE) $(PKGS); status=$$?; \
	if [ -s $(BUILD)/skipped ]; then echo; echo "Skipped here, and how to get it:"; sort -u $(BUILD)/skipped; fi; \
	exit $$status

soak: ## what takes longer than make test allows
	@for tool in zypper http-cache-tests librepo; do sh internal/mirrortest/$$tool.sh || echo "make soak: no $$tool"; done
	INSTANTMIRROR_SOAK=1 $(GO) test -count=1 -timeout 80m $(RACE) $(PKGS)

race: ## the tests under the race detector, three times over
	$(GO) test -race -count=3 -short $(PKGS)

fuzz: ## every fuzz target for FUZZTIME (30s)
	@$(GO) list -f '{{.ImportPath}} {{.Dir}}' $(PKGS) | while read -r pkg dir; do \
		for f in $$(cat $$dir/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p'); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 30x $$pkg || exit 1; \
		done; \
	done

lint: ## gofmt, go vet and the pinned golangci-lint
	@test -z "$$(gofmt -l cmd internal profiles)" || { echo "not gofmt'ed:"; gofmt -l cmd internal profiles; exit 1; }
	$(GO) vet $(PKGS)
	$(LINT) run $(PKGS)

bench: ## speed: hits, fan-out, resolve
	$(GO) test -run '^$$' -bench . -benchmem $(PKGS) | grep -v -e '^?' -e 'no test files' -e '^PASS'

clean: ## remove what was built (not ./mirror)
	rm -rf instantmirror $(BUILD)
