# Proconsul's commands. `make` alone prints them.
GO      ?= go
TOOLS   := $(CURDIR)/.tools
CONSUL  := $(TOOLS)/consul
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo build test lint fuzz chaos bench microbench tools validate screenshots cover up down clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## run the gateway with an embedded Consul API, Redis and services
	@./bin/proconsul demo $(ARGS)

build: ## build bin/proconsul and bin/echo
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

test: tools lint ## install what tests need, then run every test on real parts with -race
	@# One package at a time: those that drive real processes would starve one another.
	$(GO) test -race -p 1 -timeout 20m ./...
	@# Memory of requests is used again only without the race detector.
	$(GO) test -p 1 -timeout 10m ./pkg/front ./pkg/transport ./pkg/proxy ./pkg/gateway ./pkg/metrics ./pkg/middleware/...
	$(GO) test -run Allocations ./pkg/app

lint: ## gofmt and go vet
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'run gofmt -w on the files above' >&2; exit 1; }
	$(GO) vet ./...

fuzz: ## run every fuzz target for FUZZTIME (default 30s) each
	@deploy/scripts/fuzz.sh $(or $(FUZZTIME),30s)

chaos: tools ## break everything at 500 requests a second; writes docs/reliability.md
	$(GO) test ./pkg/chaos -count=1 -v -timeout 60m -full -report ../../docs/reliability.md $(ARGS)

bench: ## compare CPU per request with nginx, HAProxy and Caddy; writes docs/performance.md
	@deploy/scripts/install-bench.sh
	$(GO) run ./tools/bench -report docs/performance.md $(ARGS)

microbench: ## run the benchmarks beside the code
	$(GO) test -run '^$$' -bench . -benchmem ./...

tools: $(CONSUL) ## build a Consul and find what else the tests drive: Redis, Chromium, Prometheus
	@command -v redis-server >/dev/null || deploy/scripts/install-debian.sh redis-server redis-server
	@command -v chromium >/dev/null || deploy/scripts/install-debian.sh chromium chromium
	@command -v systemd-analyze >/dev/null || deploy/scripts/install-debian.sh systemd-analyze systemd
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || deploy/scripts/install-debian.sh prometheus prometheus

$(CONSUL): tools/consul/go.mod
	@echo 'building Consul for the tests, once (about two to five minutes)'
	@mkdir -p $(TOOLS)
	cd tools/consul && CGO_ENABLED=0 $(GO) build -o $(CONSUL) github.com/hashicorp/consul

validate: build ## check every example configuration, and the files for Kubernetes and Nomad
	@for f in deploy/*.yaml deploy/compose/*.yaml; do ./bin/proconsul validate -c $$f || exit 2; done
	cd tools/deploy && $(GO) test ./...

screenshots: tools ## make the pictures of README.md from the demo
	$(GO) test ./pkg/browser -count=1 -run NewOperator -pictures $(CURDIR)/docs/img

cover: tools ## write coverage.out and print the total
	$(GO) test -coverprofile=coverage.out -coverpkg=./... ./...
	@$(GO) tool cover -func=coverage.out | tail -1

up: ## start the whole stack with Docker Compose
	docker compose up --build --detach --wait

down: ## stop the stack and remove its volumes
	docker compose down --volumes

clean: ## remove what the other commands built
	rm -rf bin coverage.out $(TOOLS)
