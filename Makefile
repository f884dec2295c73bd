# slicectl. `make help` lists what can be made.
PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin
SHAREDIR = $(DESTDIR)$(PREFIX)/share
# Where units of the administrator are; packages want $(PREFIX)/lib/systemd/system.
UNITDIR ?= /etc/systemd/system
SYSCONFDIR ?= /etc
TARGET = $(or $(CARGO_TARGET_DIR),target)
CARGO ?= cargo

.PHONY: help build test soak lint demo bench install uninstall

help:
	@echo 'make build      release binaries in $(TARGET)/release'
	@echo 'make test       all tests; as root installs what they need'
	@echo 'make soak       long fuzzing, with seeds printed: 2,000 damages, 100 concurrent applies'
	@echo 'make lint       format, clippy, and cargo deny where it is installed'
	@echo 'make demo       six guests in a private lab, judged line by line; KEEP=1 leaves it up'
	@echo 'make bench      ratios against shell scripts, against the floor and against the plugins alone'
	@echo 'make install    binaries, unit, completions, examples; PREFIX=$(PREFIX) DESTDIR='
	@echo 'make uninstall  takes them away; configuration and state stay'

build:
	$(CARGO) build --locked --release

test:
	tests/run.sh

# As tests/run.sh, with more accidents.
soak:
	tests/soak.sh

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; \
	else echo 'lint: cargo-deny is not installed: licences and advisories were not checked'; fi

demo:
	KEEP='$(KEEP)' examples/demo/run.sh

bench: build
	benches/run.sh

# Needs no cargo when it was built before: `make build && sudo make install`.
$(TARGET)/release/sliced $(TARGET)/release/slicectl:
	$(CARGO) build --locked --release

install: $(TARGET)/release/sliced $(TARGET)/release/slicectl
	install -D -m 755 $(TARGET)/release/sliced $(BINDIR)/sliced
	install -D -m 755 $(TARGET)/release/slicectl $(BINDIR)/slicectl
	install -d -m 755 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/slice/groups.d
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' manifests/systemd/sliced.service > $(DESTDIR)$(UNITDIR)/sliced.service
	chmod 644 $(DESTDIR)$(UNITDIR)/sliced.service
	install -d -m 755 $(SHAREDIR)/bash-completion/completions $(SHAREDIR)/zsh/site-functions $(SHAREDIR)/fish/vendor_completions.d
	$(TARGET)/release/slicectl completion bash > $(SHAREDIR)/bash-completion/completions/slicectl
	$(TARGET)/release/slicectl completion zsh > $(SHAREDIR)/zsh/site-functions/_slicectl
	$(TARGET)/release/slicectl completion fish > $(SHAREDIR)/fish/vendor_completions.d/slicectl.fish
	install -d -m 755 $(SHAREDIR)/slicectl/manifests
	cp -R manifests/. $(SHAREDIR)/slicectl/manifests
	chmod -R u=rwX,go=rX $(SHAREDIR)/slicectl
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/cni/net.d
	@if [ -e $(DESTDIR)$(SYSCONFDIR)/cni/net.d/51-slicer.conflist ]; \
	then echo '$(SYSCONFDIR)/cni/net.d/51-slicer.conflist is there already and stays as it is'; \
	else install -m 644 manifests/cni/51-slicer.conflist $(DESTDIR)$(SYSCONFDIR)/cni/net.d/51-slicer.conflist; fi
	@echo 'Installed. Host groups go to $(SYSCONFDIR)/slice/groups.d, see $(PREFIX)/share/slicectl/manifests;'
	@echo 'start with: systemctl daemon-reload && systemctl enable --now sliced && slicectl doctor'

# Configuration, the CNI network among it, state and running VMs stay.
uninstall:
	rm -f $(BINDIR)/sliced $(BINDIR)/slicectl $(DESTDIR)$(UNITDIR)/sliced.service
	rm -f $(SHAREDIR)/bash-completion/completions/slicectl $(SHAREDIR)/zsh/site-functions/_slicectl
	rm -f $(SHAREDIR)/fish/vendor_completions.d/slicectl.fish
	rm -rf $(SHAREDIR)/slicectl
