# slicectl. `make help` lists the targets.
PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin
SHAREDIR = $(DESTDIR)$(PREFIX)/share
LIBDIR = $(DESTDIR)$(PREFIX)/lib/slicectl
# The directory of the administrator's units; packages use $(PREFIX)/lib/systemd/system.
UNITDIR ?= /etc/systemd/system
SYSCONFDIR ?= /etc
# Packages use $(PREFIX)/lib/sysusers.d.
SYSUSERSDIR ?= $(SYSCONFDIR)/sysusers.d
MANDIR = $(SHAREDIR)/man
TARGET = $(or $(CARGO_TARGET_DIR),target)
CARGO ?= cargo

NPM ?= npm

.PHONY: help build page guest-agent guest-debian test soak newcomer lint demo fleet-demo bench install uninstall

help:
	@echo 'make build      release binaries in $(TARGET)/release'
	@echo 'make page       the files of the web page, src/wire/ui/dist, which are committed; needs npm'
	@echo 'make guest-agent  static slice-agent for guests, $(TARGET)/slice-agent'
	@echo 'make guest-debian  root disks with Debian and systemd, $(TARGET)/debian: with and without slice-agent'
	@echo 'make test       all tests; as root, also installs their dependencies'
	@echo 'make soak       long fuzzing, prints its seeds: 2,000 corrupted databases, 100 concurrent applies, 1,000,000 hostile archives and messages'
	@echo 'make newcomer   the quick start of the README on a bare Debian 12, with a full build'
	@echo 'make lint       format, clippy, links of the documentation, and cargo deny if it is installed'
	@echo 'make demo       six guests in a private lab, one PASS or FAIL line per check; KEEP=1 keeps the lab'
	@echo 'make fleet-demo  three members of etcd and three nodes in a private lab: placement, failures, drain; under two minutes'
	@echo 'make bench      ratios to shell scripts, to the minimal kernel cost and to the CNI plugins alone'
	@echo 'make install    binaries, unit, group, completions, man pages, schema, examples; PREFIX=$(PREFIX) DESTDIR='
	@echo 'make uninstall  removes them; keeps configuration and state'

build:
	$(CARGO) build --locked --release

page:
	cd src/wire/ui/page && $(NPM) ci --ignore-scripts --no-audit --no-fund && $(NPM) run build

guest-agent:
	examples/guest/agent.sh $(TARGET)/slice-agent

guest-debian: guest-agent
	examples/debian/build.sh $(TARGET)/debian $(TARGET)/slice-agent

test:
	tests/run.sh

# Like tests/run.sh, with more iterations.
soak:
	tests/soak.sh

newcomer:
	tests/setup.sh
	$(CARGO) fetch --locked
	SLICE_NEWCOMER=full $(CARGO) test --locked --test e2e newcomer::

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --quiet --locked --no-deps --document-private-items --lib
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; \
	else echo 'lint: cargo-deny is not installed: skipped licences and advisories'; fi

demo:
	KEEP='$(KEEP)' examples/demo/run.sh

fleet-demo:
	examples/fleet/run.sh

bench: build
	benches/run.sh

# Needs no cargo if the binaries exist: `make build && sudo make install`.
$(TARGET)/release/sliced $(TARGET)/release/slicectl:
	$(CARGO) build --locked --release

install: $(TARGET)/release/sliced $(TARGET)/release/slicectl
	install -D -m 755 $(TARGET)/release/sliced $(BINDIR)/sliced
	install -D -m 755 $(TARGET)/release/slicectl $(BINDIR)/slicectl
	@if [ -e $(TARGET)/slice-agent ]; \
	then install -D -m 755 $(TARGET)/slice-agent $(LIBDIR)/slice-agent; \
	else echo 'without slice-agent, which VMs with `agent: inject` need: make guest-agent && make install'; fi
	install -d -m 755 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/slice/groups.d
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' manifests/systemd/sliced.service > $(DESTDIR)$(UNITDIR)/sliced.service
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' manifests/systemd/sliced-fence.service > $(DESTDIR)$(UNITDIR)/sliced-fence.service
	chmod 644 $(DESTDIR)$(UNITDIR)/sliced.service $(DESTDIR)$(UNITDIR)/sliced-fence.service
	install -D -m 644 manifests/systemd/sysusers.d/slice.conf $(DESTDIR)$(SYSUSERSDIR)/slice.conf
	@if [ -z '$(DESTDIR)' ] && command -v systemd-sysusers >/dev/null; then systemd-sysusers $(SYSUSERSDIR)/slice.conf; fi
	install -d -m 755 $(SHAREDIR)/bash-completion/completions $(SHAREDIR)/zsh/site-functions $(SHAREDIR)/fish/vendor_completions.d
	$(TARGET)/release/slicectl completion bash > $(SHAREDIR)/bash-completion/completions/slicectl
	$(TARGET)/release/slicectl completion zsh > $(SHAREDIR)/zsh/site-functions/_slicectl
	$(TARGET)/release/slicectl completion fish > $(SHAREDIR)/fish/vendor_completions.d/slicectl.fish
	install -d -m 755 $(MANDIR)/man1 $(MANDIR)/man8
	$(TARGET)/release/slicectl __man $(MANDIR)
	chmod 644 $(MANDIR)/man1/slicectl.1 $(MANDIR)/man1/slicectl-*.1 $(MANDIR)/man8/sliced.8
	install -d -m 755 $(SHAREDIR)/slicectl/manifests
	cp -R manifests/. $(SHAREDIR)/slicectl/manifests
	$(TARGET)/release/slicectl schema > $(SHAREDIR)/slicectl/schema.json
	chmod -R u=rwX,go=rX $(SHAREDIR)/slicectl
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/cni/net.d
	@if [ -e $(DESTDIR)$(SYSCONFDIR)/cni/net.d/51-slicer.conflist ]; \
	then echo '$(SYSCONFDIR)/cni/net.d/51-slicer.conflist already exists and is not changed'; \
	else install -m 644 manifests/cni/51-slicer.conflist $(DESTDIR)$(SYSCONFDIR)/cni/net.d/51-slicer.conflist; fi
	@echo 'Installed. Put manifests into $(SYSCONFDIR)/slice/groups.d; examples are in $(PREFIX)/share/slicectl/manifests.'
	@echo 'To start: systemctl daemon-reload && systemctl enable --now sliced && slicectl doctor'

# Keeps the configuration (including the CNI network), the state, the group and running VMs.
uninstall:
	rm -f $(BINDIR)/sliced $(BINDIR)/slicectl $(DESTDIR)$(UNITDIR)/sliced.service $(DESTDIR)$(UNITDIR)/sliced-fence.service
	rm -f $(SHAREDIR)/bash-completion/completions/slicectl $(SHAREDIR)/zsh/site-functions/_slicectl
	rm -f $(SHAREDIR)/fish/vendor_completions.d/slicectl.fish
	rm -f $(DESTDIR)$(SYSUSERSDIR)/slice.conf
	rm -f $(MANDIR)/man1/slicectl.1 $(MANDIR)/man1/slicectl-*.1 $(MANDIR)/man8/sliced.8
	rm -rf $(SHAREDIR)/slicectl $(LIBDIR)
