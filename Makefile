# make          build/venv, with every command as build/venv/bin/NAME
# make demo     a program in a sandbox, to see it run
# make check    all tests
# make check-hostile  the attacks of tests/hostile, all of them, and each system call of the set-up failing, one at
#               a time: more than an hour; FAULTS=11 takes each 11th, FAULTS=11+1 to 11+10 the others
# make hostile-table  how they went, beside other tools
# make check-vm those for other machines: a stock kernel with cgroup v2, one without Landlock, ...
# make html     build/html, the pages for the web
# make deb      the Debian package, in build/deb
# make check-packages  what pip and dpkg make of it, installed in clean places, and a newcomer's way
#               through README.md, in a fresh clone at a terminal; needs a network, takes some minutes
# make bench    how fast, beside what else there is
# make fuzz     all that reads what strangers may have written, FUZZ_SECONDS each
# make soak     thousands of sandboxes, hundreds at once: does anything stay behind?
# make install  PREFIX=/usr/local DESTDIR=; make uninstall takes it away again

BUILD = build
PREFIX = /usr/local
DESTDIR =
FUZZ_SECONDS = 600
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -timeout=10 -artifact_prefix=$(BUILD)/fuzz/
FAULTS = 1
SOAK = --sequential=10000 --together=300
PYTHON := $(shell tools/find-python)
COMMANDS = $(notdir $(wildcard bin/*))
PAGES = $(notdir $(wildcard man/*))
VENV = $(abspath $(BUILD))/venv
SITE = $(VENV)/lib/hako-site
LIBRARY = $(PREFIX)/lib/hako
# Where the shells look for completions, bash by the name of each command, and who makes them.
GENERATOR = $(VENV)/bin/python3
BASH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
APPARMOR = /etc/apparmor.d
ifeq ($(PYTHON),)
$(error no Python 3.11 or newer that an ordinary user may execute: apt-get install python3, or make PYTHON=/path)
endif

all: $(addprefix $(VENV)/bin/,$(COMMANDS))

$(VENV)/made: setup.cfg tools/system-packages
	tools/system-packages $(PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check setuptools wheel
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation $$($(PYTHON) -I tools/requirements setup.cfg)
	ln -s $$($(VENV)/bin/python3 -Ic 'import docopt, os; print(os.path.dirname(docopt.__file__))') $(SITE)
	echo $(CURDIR) > $(SITE)/hako.pth
	$(VENV)/bin/python3 -I -m compileall -q $(SITE)/docopt.py $(SITE)/prctl.py
	touch $@

# -S leaves out site, 4 ms of a start of 20: line 2 says instead where the modules are.
$(VENV)/bin/%: bin/% $(VENV)/made hako/patterns.py
	@$(PYTHON) -I -m compileall -q hako
	@sed -e '1s|.*|#!$(PYTHON) -IS|' -e '2s|.*|import sys; sys.path[:0] = ["$(CURDIR)", "$(SITE)"]|' $< > $@
	@chmod 755 $@

# Made from the docstrings and the profiles, and kept in the tree: `make patterns` after a change of one.
patterns: $(VENV)/made
	PYTHONPATH=. $(VENV)/bin/python3 tools/make_patterns.py > hako/patterns.new
	mv hako/patterns.new hako/patterns.py
	PYTHONPATH=. $(VENV)/bin/python3 tools/make_profiles.py hako/profiles/compiled

# The page of the library, from its docstrings.
reference: $(VENV)/made
	PYTHONPATH=. $(VENV)/bin/python3 tools/make_reference.py > man/hako.new
	mv man/hako.new man/hako.3

completions: $(if $(filter $(VENV)/%,$(GENERATOR)),$(VENV)/made)
	PYTHONPATH=$(CURDIR) $(GENERATOR) tools/make_completions.py $(BUILD)/completions

html:
	$(PYTHON) -I tools/make_html.py $(BUILD)/html

demo: all
	@tools/demo $(VENV)/bin $(BUILD)/sandbox

check: all
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mandoc -T lint -W warning man/*
	$(VENV)/bin/python3 -m pytest -q -n 4 -o cache_dir=$(BUILD)/pytest -m "not long" tests

check-hostile: all
	HAKO_FAULTS=$(FAULTS) $(VENV)/bin/python3 -m pytest -q -n 4 --dist=worksteal -p no:cacheprovider tests/test_faults.py tests/hostile

hostile-table: all
	@$(VENV)/bin/python3 tests/hostile/table.py

check-vm: all
	tests/vm/run $(VENV)/bin

# The Debian package, in build/deb.
deb:
	tools/build-deb $(BUILD)/deb

check-packages: all
	HAKO_PACKAGES=1 $(VENV)/bin/python3 -m pytest -q -p no:cacheprovider tests/packages tests/test_packages.py tests/test_debian.py

bench: all
	$(VENV)/bin/python3 bench/start.py $(VENV)/bin
	$(VENV)/bin/python3 bench/filters.py $(VENV)/bin
	$(VENV)/bin/python3 bench/pool.py $(VENV)/bin

fuzz: all
	$(VENV)/bin/pip install --quiet --disable-pip-version-check atheris
	mkdir -p $(addprefix $(BUILD)/fuzz/,kafel oci policy request elf values)
	cp hako/profiles/*.kafel hako/profiles/groups/*.kafel $(BUILD)/fuzz/kafel
	cp tests/fuzz/*.json $(BUILD)/fuzz/oci
	cp hako/policies/*.toml $(BUILD)/fuzz/policy
	cp tests/fuzz/request.seed $(BUILD)/fuzz/request
	cp /bin/true $(BUILD)/fuzz/elf
	for language in kafel oci; do PYTHONPATH=. $(VENV)/bin/python3 tests/fuzz/rules.py $$language \
		$(FUZZ_OPTIONS) $(BUILD)/fuzz/$$language || exit 1; done
	for reader in policy request elf values; do PYTHONPATH=. $(VENV)/bin/python3 tests/fuzz/$$reader.py \
		$(FUZZ_OPTIONS) $(BUILD)/fuzz/$$reader || exit 1; done

soak: all
	$(VENV)/bin/python3 tests/soak.py $(SOAK)
	$(VENV)/bin/python3 tests/soak.py --user $(SOAK)

install: all install-files
	install -m 644 $(SITE)/docopt.py $(SITE)/prctl.py $(SITE)/_prctl*.so $(DESTDIR)$(LIBRARY)
	$(PYTHON) -I -m compileall -q -s '$(DESTDIR)' $(DESTDIR)$(LIBRARY)

# All that is hako's own: who makes a package says where LIBRARY is, and has docopt and prctl there.
install-files: completions
	install -d $(addprefix $(DESTDIR),$(PREFIX)/bin $(LIBRARY)/hako/commands $(addprefix $(PREFIX)/share/man/man,1 3 5 7))
	install -m 644 hako/*.py hako/py.typed $(DESTDIR)$(LIBRARY)/hako
	install -m 644 hako/commands/*.py $(DESTDIR)$(LIBRARY)/hako/commands
	for place in . groups compiled; do install -d $(DESTDIR)$(LIBRARY)/hako/profiles/$$place || exit 1; done
	install -m 644 hako/profiles/*.kafel $(DESTDIR)$(LIBRARY)/hako/profiles
	install -m 644 hako/profiles/groups/* $(DESTDIR)$(LIBRARY)/hako/profiles/groups
	install -m 644 hako/profiles/compiled/* $(DESTDIR)$(LIBRARY)/hako/profiles/compiled
	install -d $(DESTDIR)$(LIBRARY)/hako/policies
	install -m 644 hako/policies/*.toml $(DESTDIR)$(LIBRARY)/hako/policies
	for name in $(COMMANDS); do \
		sed -e '1s|.*|#!$(PYTHON) -IS|' -e '2s|.*|import sys; sys.path[:0] = ["$(LIBRARY)"]|' bin/$$name \
			> $(DESTDIR)$(PREFIX)/bin/$$name && chmod 755 $(DESTDIR)$(PREFIX)/bin/$$name || exit 1; done
	for page in $(PAGES); do install -m 644 man/$$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$$page || exit 1; done
	install -d $(BASH_COMPLETIONS) $(ZSH_COMPLETIONS) $(FISH_COMPLETIONS)
	install -m 644 $(BUILD)/completions/hako.bash $(BASH_COMPLETIONS)/hako
	install -m 644 $(BUILD)/completions/_hako $(ZSH_COMPLETIONS)
	install -m 644 $(BUILD)/completions/hako.fish $(FISH_COMPLETIONS)
	for name in $(COMMANDS); do ln -sf hako $(BASH_COMPLETIONS)/$$name && \
		ln -sf hako.fish $(FISH_COMPLETIONS)/$$name.fish || exit 1; done
	@# AppArmor before 4 cannot read it, would complain at each start of the machine, and restricts nobody.
	@if [ -z '$(DESTDIR)' ] && [ -e $(APPARMOR)/abi/4.0 ] && [ ! -w $(APPARMOR) ]; then \
		echo 'hako: $(APPARMOR) is not yours, and without a profile there you may have no sandbox, see hako-check(1):'; \
		echo '      as root: sed "s|/usr/local/bin/|$(PREFIX)/bin/|" etc/apparmor.d/hako >$(APPARMOR)/hako'; \
	elif [ -n '$(DESTDIR)' ] || [ -e $(APPARMOR)/abi/4.0 ]; then \
		install -d $(DESTDIR)$(APPARMOR) && sed -e 's|/usr/local/bin/|$(PREFIX)/bin/|' etc/apparmor.d/hako \
			> $(DESTDIR)$(APPARMOR)/hako && chmod 644 $(DESTDIR)$(APPARMOR)/hako || exit 1; fi

uninstall:
	rm -rf $(DESTDIR)$(LIBRARY)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(COMMANDS))
	[ ! -w $(DESTDIR)$(APPARMOR) ] || rm -f $(DESTDIR)$(APPARMOR)/hako
	for page in $(PAGES); do rm -f $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$$page; done
	rm -f $(addprefix $(BASH_COMPLETIONS)/,hako $(COMMANDS)) $(ZSH_COMPLETIONS)/_hako
	rm -f $(FISH_COMPLETIONS)/hako.fish $(addprefix $(FISH_COMPLETIONS)/,$(addsuffix .fish,$(COMMANDS)))

clean:
	rm -rf $(BUILD)

.PHONY: all patterns reference completions html demo check check-hostile hostile-table check-vm check-packages soak deb bench fuzz install install-files uninstall clean
