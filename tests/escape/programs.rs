//! Programs that zsh's hook never sees, or sees under another name: they run, but inside.

use postern_tests::{World, for_each_user, prefix, stdout, text};
use serde_json::json;

use crate::attack::{Attacks, compiled, session};

/// Says that it runs, and writes to what its argument names.
const WRITER: &str = "
#include <stdio.h>
int main(int argc, char **argv) {
    puts(\"ran\");
    FILE *file = fopen(argv[1], \"a\");
    return file && fputs(\"x\", file) >= 0 && fclose(file) == 0 ? 0 : 9;
}";

/// Runs the program `p` with the name `n`, in whatever way, and goes by what it says itself.
const RUN: &str = "
def ran(command, **more):
    done = subprocess.run(command, capture_output=True, timeout=15, **more)
    assert done.stdout == b'ran\\n' and done.returncode in (0, 9), done
    need(done.returncode == 0)
def memory():
    f = os.memfd_create('x')
    os.write(f, open(writer, 'rb').read())
    return f
";

const WAYS: [(&str, &str); 9] = [
    ("as it is", "ran([writer, target])"),
    ("by the dynamic loader", "ran(['/lib64/ld-linux-x86-64.so.2', writer, target])"),
    (
        "a copy of the dynamic loader",
        "shutil.copy('/lib64/ld-linux-x86-64.so.2', f'{own}/ld'); ran([f'{own}/ld', writer, target])",
    ),
    ("from memory", "f = memory(); ran([f'/proc/self/fd/{f}', target], pass_fds=[f])"),
    (
        "from memory, by descriptor",
        "f = memory(); ran(['python3', '-c', 'import os, sys; os.execve(int(sys.argv[1]), [\"w\", sys.argv[2]], {})', str(f), target], pass_fds=[f])",
    ),
    ("a copy under another name", "shutil.copy(writer, f'{own}/ls'); ran([f'{own}/ls', target])"),
    ("by another argv[0]", "ran(['/bin/true', target], executable=writer)"),
    ("statically linked", "ran([static, target])"),
    (
        "a static copy in /dev/shm",
        "c = f'/dev/shm/postern-{os.getpid()}'; shutil.copy(static, c)\ntry: ran([c, target])\nfinally: os.unlink(c)",
    ),
];

fn writers(world: &World) -> serde_json::Value {
    let writer = compiled(world, "writer", WRITER, &[]);
    json!({ "writer": writer, "static": compiled(world, "static", WRITER, &["-static"]) })
}

#[test]
fn every_way_to_run_a_program_runs_it_inside() {
    for_each_user(|world| {
        let given = writers(world);
        let ways = WAYS.map(|(name, code)| (name, format!("{RUN}{code}")));
        let attacks = Attacks::new(world, &given, &ways);
        attacks.outside(true);
        attacks.inside(|command| session(world, &[], command));
        // Also where a rule would let the program out, if it were asked for by itself.
        let rules =
            world.write("r.rules", format!("prefix_rule([{}], execution = 'unsandboxed')", given["writer"]));
        attacks.inside(|command| session(world, &["--rules", rules.to_str().unwrap()], command));
    });
}

#[test]
fn a_rule_speaks_for_the_program_and_not_for_what_looks_like_it() {
    for_each_user(|world| {
        let given = writers(world);
        let writer = given["writer"].as_str().unwrap();
        let rules = format!(
            "prefix_rule(['writer'], execution = 'unsandboxed')\nprefix_rule(['{writer}'], execution = 'unsandboxed')"
        );
        let target = world.write("outside/target", "");
        let written = |script: &str| {
            std::fs::write(&target, "").unwrap();
            let output = world.session(
                &rules,
                &script.replace("WRITER", writer).replace("TARGET", target.to_str().unwrap()),
            );
            let ran = stdout(&output);
            assert!(ran.lines().all(|line| line == "ran"), "{script}: {ran} {}", text(&output.stderr));
            (ran.lines().count(), std::fs::read(&target).unwrap().len())
        };
        assert_eq!(written("WRITER TARGET"), (1, 1), "the rule is in force");
        for fake in [
            "cp WRITER writer; ./writer TARGET",
            "cp WRITER writer; path=($PWD $path); writer TARGET",
            "cp WRITER x; (exec -a WRITER ./x TARGET)",
            "cp WRITER x; (exec -a writer ./x TARGET)",
            "mkdir -p d; cp WRITER d/writer; cd d; writer() { ./writer $@ }; writer TARGET",
            "cp WRITER writer; hash writer=$PWD/writer; writer TARGET",
            "ln -sf WRITER other; (exec -a other ./other TARGET)",
            "/lib64/ld-linux-x86-64.so.2 WRITER TARGET",
            "cp WRITER x; /lib64/ld-linux-x86-64.so.2 ./x TARGET",
            "cp WRITER x; /lib64/ld-linux-x86-64.so.2 --argv0 WRITER ./x TARGET",
            "print '#!WRITER TARGET' > s; chmod +x s; ./s",
        ] {
            let (ran, wrote) = written(&format!("rm -rf writer x d other s; {fake}"));
            assert_eq!((ran, wrote), (1, 0), "{fake}");
        }
    });
}

#[test]
fn a_path_is_the_same_however_it_is_written() {
    for_each_user(|world| {
        let writer = writers(world)["writer"].as_str().unwrap().to_owned();
        let target = world.write("outside/target", "");
        let (directory, outside) = (world.outside.display(), target.display());
        let dotted =
            ["/./writer", "//writer", "/.//./writer"].map(|name| format!("{directory}{name} {outside}"));
        let lines = [
            format!("{writer} {outside}"),
            format!("cd {directory}; ./writer {outside}"),
            format!("/{writer} {outside}"),
        ];
        let mut ran = Vec::new();
        for line in lines.iter().chain(&dotted) {
            let plain = world.plain(prefix().join("libexec/postern/zsh"), &["-fc", line]);
            assert_eq!(stdout(&plain), "ran", "{line}: {}", text(&plain.stderr));
            for forbids in [
                format!("prefix_rule(['{writer}'], decision = 'forbidden')"),
                format!(
                    "host_executable('writer', ['{writer}'])\nprefix_rule(['writer'], decision = 'forbidden')"
                ),
                format!(
                    "prefix_rule(['{writer}'], decision = 'forbidden')\nprefix_rule(['writer'], execution = 'unsandboxed')"
                ),
            ] {
                std::fs::write(&target, "").unwrap();
                let output = world.session(&forbids, line);
                if !stdout(&output).is_empty() {
                    let wrote = !std::fs::read(&target).unwrap().is_empty();
                    ran.push(format!("{line}, {forbids}, outside: {wrote}"));
                }
            }
        }
        assert!(ran.is_empty(), "{ran:#?}");
    });
}
