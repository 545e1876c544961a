//! The same scripts under plain zsh and under Postern: the same stdout, stderr and status.

use std::os::unix::process::CommandExt;

use postern_tests::{finish, for_each_user, status, text};

/// Each is a script for `-fc`. What it prints must not depend on where it runs.
const SCRIPTS: &[&str] = &[
    "print hello; /bin/echo world",
    "nosuch; print $?",
    "command_not_found_handler() { print handled $1; return 42 }; nosuch a; print $?",
    "touch plain; ./plain; print $?",
    "print 'echo no interpreter $1' > s; chmod +x s; ./s arg; print $?",
    "print '#!/bin/sh\\necho interpreted $0 $1; exit 3' > s; chmod +x s; ./s arg; print $?",
    "print '#!/no/such/interpreter\\n' > s; chmod +x s; ./s; print $?",
    "print '#!sh\\necho by path' > s; chmod +x s; ./s; print $?",
    "print '\\0\\1\\2' > b; chmod +x b; ./b; print $?",
    "mkdir d; ./d; print $?; d/x; print $?; /etc/passwd/x; print $?",
    "path=(/nonexistent $path /usr/sbin); true; /bin/true; print $?",
    "mkdir one two; print '#!/bin/sh\\necho one' > one/p; print '#!/bin/sh\\necho two' > two/p; chmod +x two/p; path=($PWD/one $PWD/two $path); p; print $?",
    "(exec -a other sh -c 'echo $0'); ARGV0=named sh -c 'echo $0'; - sh -c 'echo $0'",
    "exec sh -c 'exit 9'",
    "exec nosuch; print not reached",
    "command sh -c 'exit 4'; print $?; command -p sh -c 'exit 5'; print $?",
    "sh -c 'kill -TERM $$'; print $?; sh -c 'kill -KILL $$'; print $?",
    "sh -c 'kill -SEGV $$'; print $?",
    "print a b c | tr ' ' '\\n' | sort -r | head -2; print $pipestatus",
    "yes | head -1; print $pipestatus",
    "cat <(echo one) <(echo two); echo three > >(cat); sleep 0.1",
    "diff =(echo a) =(echo b); print $?",
    "coproc cat; print -p through; read -p line; print $line",
    "x=$(echo sub; exit 3); print $x $?",
    "sh -c 'exit 6' & wait $!; print $?",
    "for i in 1 2 3; do sh -c \"exit $i\" & pids+=($!); done; for p in $pids; do wait $p; print $?; done",
    "trap 'print bye' EXIT; sh -c 'exit 2'",
    "umask 027; sh -c umask; ulimit -n 100; sh -c 'ulimit -n'",
    "trap '' INT; sh -c 'kill -INT $$; echo survived'",
    "exec 5>out; sh -c 'echo five >&5'; exec 5>&-; cat out; sh -c 'echo x >&5' 2>/dev/null; print $?",
    "sh -c 'read x; echo got $x' <<< input; cat <<EOF\nhere $((1+1))\nEOF",
    "cat <&-; print $?",
    "env -i /bin/sh -c 'echo ${HOME-none}'",
    "cd /; pwd; cd - >/dev/null; mkdir -p a/b; cd a/b; sh -c 'basename $PWD'",
    "setopt errexit; false; print not reached",
    "zmodload zsh/zpty && zpty p cat && zpty -w p hello && zpty -r p line && print -r -- ${line%%[[:space:]]*}; zpty -d p",
    "zmodload zsh/pcre zsh/system zsh/stat zsh/datetime zsh/regex zsh/mathfunc && print loaded",
    "autoload -Uz compinit is-at-least; is-at-least 5.9 && print new enough",
    "time true 2>/dev/null; TIMEFMT=%J; time sh -c :",
    "print -rn -- $'\\xff\\xfe\\0' | od -c; sh -c 'printf %s \"$1\" | od -c' - $'a\\xe9'",
    "sh -c 'exit 255'; print $?; sh -c 'exit 256'; print $?",
    "setopt pipefail; sh -c 'exit 3' | cat; print $?",
    "disown 2>&1; jobs; sleep 0.1 &! print gone",
    "nohup true 2>/dev/null; nice -n 5 nice; (nice -n 3 sh -c nice)",
    "emulate -R zsh; emulate sh -c 'echo $0'; emulate -R sh; /bin/echo still",
    "eval 'sh -c \"exit 8\"'; print $?; source /dev/stdin <<< 'sh -c \"echo sourced\"'",
    "f() { sh -c 'echo in f' }; f | cat; (f); { f } always { print always }",
    "(( 1 )) && [[ -x /bin/sh ]] && which -p sh >/dev/null; print $?; whence -p nosuch; print $?; hash sh; sh -c :; print $?",
];

#[test]
fn scripts_do_what_they_do_under_plain_zsh() {
    for_each_user(|world| {
        for (number, script) in SCRIPTS.iter().enumerate() {
            let run = |shell: &mut std::process::Command| {
                let directory = world.workspace.join("run");
                let _fresh = std::fs::remove_dir_all(&directory);
                std::fs::create_dir(&directory).unwrap();
                world.own();
                // `#!` lines and modules find their way in both.
                let output = finish(shell.current_dir(&directory).args(["-fc", script]));
                (text(&output.stdout), text(&output.stderr), status(&output))
            };
            let plain = run(world.plain_command(postern_tests::installed_stock()).arg0("zsh"));
            let postern = run(world.posternsh().arg0("zsh"));
            assert_eq!(plain, postern, "script {number}: {script}");
        }
    });
}

#[test]
fn arguments_and_names_are_zshs() {
    for_each_user(|world| {
        let script = world.write("ws/s.zsh", "print $0 $# $1; [[ -o login ]] && print login; exit 2\n");
        let script = script.to_str().unwrap();
        let shells = || [world.plain_command(postern_tests::installed_stock()), world.posternsh()];
        let both = |arguments: &[&str], zeroth: &str, input: &str| {
            let run = |mut command: std::process::Command| {
                let input_file = world.write("input", input);
                let file = std::fs::File::open(input_file).unwrap();
                let output = finish(command.arg0(zeroth).args(arguments).stdin(file));
                (text(&output.stdout), text(&output.stderr), status(&output))
            };
            let [plain, postern] = shells().map(run);
            assert_eq!(plain, postern, "{zeroth} {arguments:?}");
        };
        both(&["-f", script, "a", "b"], "zsh", "");
        both(&["-fc", "print $0 $1", "name", "arg"], "zsh", "");
        both(&["-f"], "-zsh", "[[ -o login ]] && print login; print from stdin; exit 7\n");
        both(&["-f", "-s", "x"], "zsh", "print $1\n");
        both(&["-lfc", "[[ -o login ]] && print login"], "zsh", "");
        both(&["--version"], "zsh", "");
        both(&["-fc", "cat > copied; wc -c < copied"], "zsh", &"x".repeat(70_000));
        both(&["-z"], "zsh", "");
        both(&["--no-such-option"], "zsh", "");
        both(&["-f", "/no/such/script"], "zsh", "");
    });
}
