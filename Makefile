# Postern. `make help` lists what there is to type.
PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
OUT = target/postern
RELEASE = target/release
# Everything that the binaries are made of.
SOURCES = $(shell find shim escalation-server -name '*.rs' -o -name '*.toml' -o -name '*.h') Cargo.toml Cargo.lock

.PHONY: all help prerequisites binaries zsh stock-zsh demo test bench lint install uninstall clean
all: $(OUT)/.complete

help:
	@echo 'make            build everything into $(OUT)/'
	@echo 'make demo       a real session, with its transcript and its log'
	@echo 'make test       every test'
	@echo 'make bench      speed against plain zsh'
	@echo 'make lint       format, clippy, documentation'
	@echo 'make install    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'make uninstall, make clean'

# Compiler, make's friends, and what zsh is built with; tests and the demo use git and python besides.
prerequisites:
	@.ci/prerequisites

# Each command begins as a copy of the spawner, which is made and taken down faster with no library mapped. Where that
# cannot be linked, or not so that it lies at a random address, it has some.
ONE_PIECE = $(shell mkdir -p target && [ "$$(uname -m)" = x86_64 ] && \
	echo 'int main(void) { return 0; }' | cc -static-pie -x c - -o target/.one-piece 2>/dev/null && \
	target/.one-piece && echo -C target-feature=+crt-static)

binaries: prerequisites
	$(CARGO) build --release --locked -p postern-shim -p escalation-server --lib --bin postern
	$(CARGO) rustc --release --locked -p escalation-server --bin postern-spawner -- $(ONE_PIECE)

$(OUT)/.complete: $(SOURCES) zsh-patches/UPSTREAM zsh-patches/build zsh-patches/fetch $(wildcard zsh-patches/*.patch)
	@$(MAKE) --no-print-directory binaries
	@mkdir -p $(OUT)/bin $(OUT)/shell
	zsh-patches/build patched $(CURDIR)/$(OUT) $(CURDIR)/$(RELEASE)/libpostern_shim.a
	install -m 755 $(RELEASE)/postern-spawner $(OUT)/libexec/postern/postern-spawner.new
	mv $(OUT)/libexec/postern/postern-spawner.new $(OUT)/libexec/postern/postern-spawner
	install -m 755 $(RELEASE)/postern $(OUT)/bin/postern.new
	mv $(OUT)/bin/postern.new $(OUT)/bin/postern
	ln -sfn postern $(OUT)/bin/posternsh
	ln -sfn ../bin/postern $(OUT)/shell/zsh
	@touch $@

stock-zsh: prerequisites
	zsh-patches/build stock $(CURDIR)/target/zsh-stock

demo: all
	@tests/demo/run

test: all stock-zsh
	@tests/run

bench: all stock-zsh
	@$(CARGO) run --release --locked -q -p postern-tests --bin bench

lint: prerequisites
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --no-deps --document-private-items -p postern-shim -p escalation-server

install: all
	umask 022; install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/shell $(DESTDIR)$(PREFIX)/libexec/postern $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/share
	install -m 755 $(OUT)/bin/postern $(DESTDIR)$(PREFIX)/bin/postern
	ln -sfn postern $(DESTDIR)$(PREFIX)/bin/posternsh
	ln -sfn ../bin/postern $(DESTDIR)$(PREFIX)/shell/zsh
	install -m 755 $(OUT)/libexec/postern/zsh $(OUT)/libexec/postern/postern-spawner $(DESTDIR)$(PREFIX)/libexec/postern/
	umask 022; cp -R $(OUT)/lib/postern $(DESTDIR)$(PREFIX)/lib/
	umask 022; install -d $(DESTDIR)$(PREFIX)/share/postern
	umask 022; sed 's|@PREFIX@|$(PREFIX)|g' docs/apparmor.profile > $(DESTDIR)$(PREFIX)/share/postern/apparmor.profile
	umask 022; cp -R $(OUT)/share/postern/zsh $(DESTDIR)$(PREFIX)/share/postern/
	@sed 's|@PREFIX@|$(PREFIX)|g' docs/after-install.txt

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/postern $(DESTDIR)$(PREFIX)/bin/posternsh $(DESTDIR)$(PREFIX)/shell/zsh
	rm -rf $(DESTDIR)$(PREFIX)/libexec/postern $(DESTDIR)$(PREFIX)/lib/postern $(DESTDIR)$(PREFIX)/share/postern

clean:
	rm -rf target
