//! By what a command goes besides its file and its arguments: variables that make it run something
//! else, and the name that it is started under.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use postern_tests::{World, finish, for_each_user, prefix, stdout, text};

use crate::attack::compiled;

/// What is exported, and which program then does as it is told. EVIL leaves a mark, OWN is a directory
/// of the workspace, ZSH plain zsh; what comes out as CAME was told too.
const VARIABLES: &[(&str, &str)] = &[
    ("GIT_SSH_COMMAND=EVIL", "git ls-remote ssh://127.0.0.1:9/x"),
    ("GIT_SSH=EVIL", "git ls-remote ssh://127.0.0.1:9/x"),
    ("GIT_PROXY_COMMAND=EVIL", "git ls-remote git://127.0.0.1:9/x"),
    ("GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.fsmonitor GIT_CONFIG_VALUE_0=EVIL", "git status"),
    ("GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=alias.up GIT_CONFIG_VALUE_0='!EVIL'", "git up"),
    (
        "GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.sshCommand GIT_CONFIG_VALUE_0=EVIL",
        "git ls-remote ssh://127.0.0.1:9/x",
    ),
    ("GIT_CONFIG_PARAMETERS=\"'core.fsmonitor=EVIL'\"", "git status"),
    ("GIT_CONFIG_GLOBAL=OWN/.gitconfig", "git status"),
    ("GIT_CONFIG_SYSTEM=OWN/.gitconfig", "git status"),
    ("GIT_DIR=OWN/repository/.git", "git status"),
    ("GIT_EXEC_PATH=OWN", "git helper"),
    ("GIT_EXTERNAL_DIFF=EVIL", "git diff"),
    ("GIT_EDITOR=EVIL", "git -c core.editor=true commit --allow-empty"),
    // The one that starts its pager where there is no terminal.
    ("GIT_PAGER=EVIL", "git grep -O tracked"),
    ("PAGER=EVIL", "git grep -O tracked"),
    ("GIT_ASKPASS=EVIL", "print 'protocol=https\\nhost=h.invalid\\n' | git credential fill"),
    ("SSH_ASKPASS=EVIL", "print 'protocol=https\\nhost=h.invalid\\n' | git credential fill"),
    ("HOME=OWN", "git status"),
    ("XDG_CONFIG_HOME=OWN", "git status"),
    ("BASH_ENV=OWN/script", "bash -c :"),
    ("PROMPT_COMMAND=EVIL", "bash --norc -i"),
    ("ENV=OWN/script", "sh -i +m -c :"),
    ("PATH=OWN:$PATH", "sh -c git-helper"),
    ("ZDOTDIR=OWN", "ZSH -c :"),
    ("PYTHONSTARTUP=OWN/sitecustomize.py", "python3 -i"),
    ("PYTHONPATH=OWN", "python3 -c pass"),
    ("PYTHONHOME=OWN/python", "python3 -c pass"),
    ("PERL5OPT='-Mhelper -IOWN'", "perl -e 1"),
    ("PERL5LIB=OWN", "perl -Mhelper -e 1"),
    ("PERL5DB='BEGIN { system q(EVIL) } sub DB::DB {}'", "perl -d -e 1"),
    ("NODE_OPTIONS=--require=OWN/helper.js", "node -e 0"),
    ("MAKEFLAGS='--eval=$$(shell\\ EVIL)'", "make -f /dev/null"),
    ("MAKEFILES=OWN/makefile", "make -f /dev/null"),
    ("LESSOPEN='|EVIL %s'", "less tracked"),
    ("TERMINFO=OWN/terminfo TERM=postern-evil", "tput clear"),
    ("TERMINFO_DIRS=OWN/terminfo TERM=postern-evil", "tput clear"),
    ("LOCPATH=OWN LC_ALL=locale", "date -ud 2023-01-01 +%A"),
    // Of these as paths ncurses and glibc make nothing; others do.
    ("TERM=OWN/CAME", "printenv TERM"),
    ("COLORTERM=OWN/CAME", "printenv COLORTERM"),
    ("LC_ALL=OWN/CAME", "printenv LC_ALL"),
    ("LANG=OWN/CAME", "printenv LANG"),
    ("LANGUAGE=OWN/CAME", "printenv LANGUAGE"),
    ("TZ=OWN/zone", "date +%Z"),
    ("TZ=:OWN/zone", "date +%Z"),
    ("TZDIR=OWN TZ=zone", "date +%Z"),
];

/// Rules for all of these programs.
fn rules(execution: &str) -> String {
    let programs =
        "'git', 'sh', 'bash', 'zsh', 'python3', 'perl', 'node', 'make', 'less', 'tput', 'printenv', 'date'";
    format!("prefix_rule([[{programs}]], execution = '{execution}')\n")
}

struct Plot<'a> {
    world: &'a World,
    own: String,
    marks: String,
}

impl<'a> Plot<'a> {
    /// Everything that the variables name.
    fn prepare(world: &'a World) -> Self {
        let (own, marks) = (world.workspace.join("own"), world.root.join("marks"));
        for directory in ["git", "locale", "python"] {
            std::fs::create_dir_all(own.join(directory)).unwrap();
        }
        std::fs::create_dir(&marks).unwrap();
        let plot = Self { world, own: own.display().to_string(), marks: marks.display().to_string() };
        // Whichever program runs it: the line of the table that it is told by stands in a file.
        let evil = format!("#!/bin/sh\n: > {}/$(cat {}/row)\n", plot.marks, world.workspace.display());
        let zone = [&b"TZif"[..], &[0; 35], &[1, 0, 0, 0, 5], &[0; 6], b"CAME\0"].concat();
        let files: [(&str, &[u8]); 12] = [
            ("evil", evil.as_bytes()),
            ("git-helper", evil.as_bytes()),
            ("script", b"EVIL"),
            (".zshenv", b"EVIL"),
            (".gitconfig", b"[core]\nfsmonitor = EVIL\n"),
            ("git/config", b"[core]\nfsmonitor = EVIL\n"),
            ("sitecustomize.py", b"import os\nos.system('EVIL')\n"),
            ("helper.pm", b"system('EVIL'); 1;"),
            ("helper.js", b"require('child_process').execFileSync('EVIL')"),
            ("makefile", b"$(shell EVIL)\n"),
            ("terminfo.src", b"postern-evil, clear=CAME,\n"),
            ("zone", &zone),
        ];
        for (name, content) in files {
            let content = String::from_utf8_lossy(content);
            std::fs::write(own.join(name), plot.filled(&content)).unwrap();
            std::fs::set_permissions(own.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        world.write("ws/tracked", "tracked\n");
        // A standard library with one module of another's, a locale with another Sunday.
        let furnish = "git add tracked; echo tracked >> tracked; git init -q OWN/repository; cp OWN/.gitconfig OWN/repository/.git/config
            tic -o OWN/terminfo OWN/terminfo.src
            cp -r /usr/lib/locale/C.utf8/. OWN/locale; LC_ALL=C sed -i s/Sunday/CAMExx/ OWN/locale/LC_TIME
            library=$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))'); mkdir -p OWN/python/lib/${library##*/}
            cd OWN/python/lib/${library##*/}; ln -s $library/* .; rm -f sitecustomize.py; cp OWN/sitecustomize.py .";
        let made = world.plain("bash", &["-ec", &plot.filled(furnish)]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        plot
    }

    fn filled(&self, line: &str) -> String {
        let zsh = prefix().join("libexec/postern/zsh");
        line.replace("EVIL", "OWN/evil")
            .replace("OWN", &self.own)
            .replace("OUT", &self.world.outside.display().to_string())
            .replace("ZSH", &zsh.display().to_string())
    }

    /// Which of these lines were told something by what they were given.
    fn came<'l>(&self, shell: &mut Command, lines: &'l [String]) -> Vec<&'l str> {
        let mut script = String::new();
        for (at, line) in lines.iter().enumerate() {
            let line = self.filled(line);
            script += &format!(
                "print {at} >| $PWD/row; out=$( {{ {line} }} < /dev/null ); \
                 [[ $out == *CAME* || -e {}/{at} ]] && print came || print failed\n",
                self.marks
            );
        }
        // Without a terminal, on which something could ask.
        let output = finish(shell.args(["-fc", &script]));
        for at in 0..lines.len() {
            let _none = std::fs::remove_file(Path::new(&self.marks).join(at.to_string()));
        }
        let out = stdout(&output);
        assert_eq!(out.lines().count(), lines.len(), "{out} {}", text(&output.stderr));
        lines.iter().zip(out.lines()).filter(|(_, said)| *said == "came").map(|(line, _)| &**line).collect()
    }

    fn plain(&self, lines: &[String]) {
        let mut shell = self.world.plain_command("setsid");
        let came = self.came(shell.arg("--wait").arg(prefix().join("libexec/postern/zsh")), lines);
        let failed: Vec<_> = lines.iter().filter(|line| !came.contains(&line.as_str())).collect();
        assert!(failed.is_empty(), "no attacks even where nothing defends: {failed:#?}");
    }

    /// Which come in a session with these rules, and how many ran outside its sandbox.
    fn session<'l>(&self, rules: &str, lines: &'l [String]) -> (Vec<&'l str>, usize) {
        let escalated = || self.world.records().iter().filter(|line| line["decision"] == "escalate").count();
        let before = escalated();
        let config = format!(
            "[permissions.marking.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n'{}' = 'write'\n",
            self.marks
        );
        let config = self.world.write("c.toml", config);
        let rules = self.world.write("r.rules", self.filled(rules));
        let mut shell = self.world.plain_command("setsid");
        shell.arg("--wait").arg(prefix().join("bin/postern")).args(["--on-prompt", "deny"]);
        let came = self.came(shell.arg("--config").arg(config).arg("--rules").arg(rules).arg("--"), lines);
        (came, escalated() - before)
    }
}

#[test]
fn no_variable_of_the_askers_makes_an_escalated_command_run_something() {
    for_each_user(|world| {
        let plot = Plot::prepare(world);
        let lines: Vec<_> =
            VARIABLES.iter().map(|(variables, command)| exporting(variables, command)).collect();
        plot.plain(&lines);
        // Under the profile too it could leave its mark.
        for execution in ["unsandboxed", "marking"] {
            let none: Vec<&str> = Vec::new();
            assert_eq!(plot.session(&rules(execution), &lines), (none, lines.len()), "each has run outside");
        }
    });
}

fn exporting(variables: &str, command: &str) -> String {
    format!("export {variables}; {command}")
}

#[test]
fn a_rule_keeps_the_variables_that_it_names_for_the_command_that_it_is_about() {
    for_each_user(|world| {
        let plot = Plot::prepare(world);
        let keeps = |words: &str, kept: &str| {
            format!("prefix_rule([{words}], execution = 'unsandboxed', env_keep = [{kept}])\n")
        };
        let ssh = exporting("GIT_SSH_COMMAND=EVIL", "git ls-remote ssh://127.0.0.1:9/x");
        let table = [
            // Of two rules that allow, one does not keep it.
            (keeps("'git'", "'GIT_SSH_COMMAND'") + &keeps("'git', 'ls-remote'", ""), ssh.clone()),
            // Another name, and no pattern.
            (keeps("'git'", "'GIT_SSH', 'GIT_SSH_*', 'GIT_*', '*', 'git_ssh_command'"), ssh),
            // Another command, which starts this one.
            (
                keeps("'git'", "'GIT_SSH_COMMAND'") + &keeps("'sh'", ""),
                exporting("GIT_SSH_COMMAND=EVIL", "sh -c 'git ls-remote ssh://127.0.0.1:9/x; :'"),
            ),
            // What is kept of a search path is where no sandbox can write.
            (keeps("'sh'", "'PATH'"), exporting("PATH=OWN:$PATH", "sh -c git-helper")),
            (keeps("'sh'", "'PATH'"), exporting("PATH=own:$PATH", "sh -c git-helper")),
            (keeps("'sh'", "'PATH'"), exporting("PATH=/proc/self/cwd/own:$PATH", "sh -c git-helper")),
            (keeps("'sh'", "'PATH'"), exporting("PATH=/dev/fd/../cwd/own:$PATH", "sh -c git-helper")),
            (keeps("'sh'", "'PATH'"), "ln -sfn own l; export PATH=$PWD/l:$PATH; sh -c git-helper".to_owned()),
        ];
        for (rules, line) in table {
            let lines = [line];
            plot.plain(&lines);
            assert_eq!(plot.session(&rules, &lines), (Vec::new(), 1), "{rules}");
        }
    });
}

/// As busybox: by its own name, what its first argument says; else what it is called. `good` does
/// nothing, all else runs a script.
const MULTI: &str = "
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/');
    name = name ? name + 1 : argv[0];
    if (strcmp(name, \"multi\") == 0 && argc > 1) name = argv[1];
    return strcmp(name, \"good\") ? execl(\"/bin/sh\", \"sh\", argv[argc - 1], (char *)0) : 0;
}";

/// A program of many names, and git, below OUT: as links and as files.
fn named(world: &World) {
    let multi = compiled(world, "multi", MULTI, &[]);
    let git = world.plain("sh", &["-c", "command -v git"]);
    let git = stdout(&git);
    for directory in ["link", "file"] {
        std::fs::create_dir(world.outside.join(directory)).unwrap();
    }
    for (program, name) in [(&*multi, "good"), (&*multi, "other"), (Path::new(&git), "git-upload-pack")] {
        symlink(program, world.outside.join("link").join(name)).unwrap();
        std::fs::copy(program, world.outside.join("file").join(name)).unwrap();
    }
    world.own();
}

fn names_do_not_come(table: &[(&str, &str)]) {
    for_each_user(|world| {
        let plot = Plot::prepare(world);
        named(world);
        let mut out = Vec::new();
        for (program, line) in table {
            let rules = format!("prefix_rule([{program}], execution = 'unsandboxed')");
            let lines = [(*line).to_owned()];
            plot.plain(&lines);
            out.extend(plot.session(&rules, &lines).0.iter().map(|line| format!("{program}: {line}")));
        }
        assert!(out.is_empty(), "{out:#?}");
    });
}

#[test]
fn a_program_of_many_names_is_not_another_one_by_its_argv_zero() {
    names_do_not_come(&[
        ("'good'", "(exec -a other OUT/file/good EVIL)"),
        ("'good'", "(exec -a multi OUT/file/good other EVIL)"),
        ("'good'", "(exec -a other OUT/link/good EVIL)"),
        ("'good'", "(exec -a '' OUT/link/good EVIL)"),
        ("'good'", "ARGV0=OUT/link/other OUT/link/good EVIL"),
        ("'good'", "(exec -a good/other OUT/link/good EVIL)"),
        ("'good'", "cp OUT/multi good; (exec -a other ./good EVIL)"),
        ("'good'", "ln -sf OUT/multi good; (exec -a multi ./good other EVIL)"),
        ("'good'", "OUT/multi other EVIL"),
        ("'multi', 'good'", "cp EVIL good; (exec -a other OUT/multi good)"),
        ("'git-upload-pack'", "(exec -a git OUT/file/git-upload-pack -c 'alias.x=!EVIL' x)"),
        ("'git-upload-pack'", "git -c 'alias.x=!EVIL' x"),
    ]);
}

#[test]
fn nor_by_a_dash_or_by_the_name_of_what_a_link_leads_to() {
    names_do_not_come(&[
        // Only a shell takes a leading dash for a login's; to git it is no `git-upload-pack` any more.
        ("'good'", "(exec -a -good OUT/file/good EVIL)"),
        ("'git-upload-pack'", "(exec -a -git-upload-pack OUT/file/git-upload-pack -c 'alias.x=!EVIL' x)"),
        // The rule is about the link, and the name is the file's.
        ("'good'", "(exec -a multi OUT/link/good other EVIL)"),
        ("'OUT/link/good'", "(exec -a multi OUT/link/good other EVIL)"),
        ("'git-upload-pack'", "(exec -a git OUT/link/git-upload-pack -c 'alias.x=!EVIL' x)"),
        // The rule is about the file, and the name is the link's.
        ("'multi', 'good'", "cp EVIL good; OUT/link/other good"),
        ("'OUT/multi', 'good'", "cp EVIL good; OUT/link/other good"),
    ]);
}
