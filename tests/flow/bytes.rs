use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use postern_tests::{World, finish, for_each_user, status, stdout, text};

const RULES: &str = "prefix_rule([\"python3\"], execution = \"unsandboxed\", env_keep = [\"ODD\"])";

fn script(world: &World, bytes: &[u8]) -> std::path::PathBuf {
    world.write("bytes.zsh", bytes)
}

fn run(world: &World, rules: &str, script: &std::path::Path) -> std::process::Output {
    let mut command = world.postern();
    if !rules.is_empty() {
        command.arg("--rules").arg(world.write("test.rules", rules));
    }
    finish(command.arg("--").arg("-f").arg(script))
}

#[test]
fn what_is_not_utf8_passes_unharmed() {
    const SHOW: &[u8] = b"import sys,os\nfor word in sys.argv[1:]: print(os.fsencode(word).hex())\nprint(os.environb[b'ODD'].hex())\nprint(sorted(os.listdir(b'.'))[-1].hex())\n";
    for_each_user(|world| {
        let show = world.write("show.py", SHOW);
        let line = [
            b"touch $'z\\xff\\xfe'\nODD=$'\\x80=\\x81' python3 ".as_slice(),
            show.as_os_str().as_bytes(),
            b" $'a\\xe9\\x83' '' $'\\n'\n",
        ]
        .concat();
        let expected = "61e983\n\n0a\n803d81\n7afffe";
        let script = script(world, &line);
        assert_eq!(stdout(&run(world, "", &script)), expected);
        let escalated = run(world, RULES, &script);
        assert_eq!(stdout(&escalated), expected, "{}", text(&escalated.stderr));
        let records = world.records();
        let argv = &records.iter().find(|line| line["decision"] == "escalate").unwrap()["claimed"]["argv"];
        assert_eq!(argv[2]["bytes"], "YemD", "{argv}");
    });
}

#[test]
fn a_project_whose_path_is_no_text() {
    for_each_user(|world| {
        let project = world.workspace.join(std::ffi::OsStr::from_bytes(b"p\xff\xfe"));
        std::fs::create_dir_all(project.join(".git")).unwrap();
        world.own();
        let rules = "prefix_rule(['touch', 'outside'], execution = 'unsandboxed')\nprefix_rule(['ls'], execution = 'read-only')";
        let rules = world.write("p.rules", rules);
        let run = "touch inside; touch outside; ls; touch .git/x";
        let mut session = world.postern();
        session.current_dir(&project).arg("--rules").arg(rules).args(["--", "-fc", run]);
        let output = finish(&mut session);
        assert_eq!(stdout(&output), "inside\noutside", "{}", text(&output.stderr));
        assert!(!project.join(".git/x").exists());
    });
}

#[test]
fn a_large_argument_and_a_large_argv_pass() {
    for_each_user(|world| {
        // MAX_ARG_STRLEN is 128 KiB with its NUL; two megabytes are what an 8 MiB stack allows.
        let count = b"import sys; print(len(sys.argv), sum(map(len, sys.argv[1:])))";
        let count = world.write("count.py", count);
        let lines = format!(
            "one=${{(l:131071::x:)}}\npython3 {0} $one\nwords=(${{(s: :)${{(l:250000::xxxxxxxxx :)}}}})\npython3 {0} $words $words $words $words\n",
            count.display()
        );
        let script = script(world, lines.as_bytes());
        let expected = "2 131071\n100001 900000";
        let in_place = run(world, "", &script);
        assert_eq!(stdout(&in_place), expected, "{}", text(&in_place.stderr));
        let escalated = run(world, RULES, &script);
        assert_eq!(stdout(&escalated), expected, "{}", text(&escalated.stderr));
    });
}

#[test]
fn too_large_an_argv_is_the_kernels_refusal() {
    for_each_user(|world| {
        let script = script(world, b"one=${(l:131072::x:)}; /bin/true $one; print $?\n");
        let output = run(world, "", &script);
        let plain = Command::new(postern_tests::installed_stock()).arg("-f").arg(&script).output().unwrap();
        assert_eq!(stdout(&output), stdout(&plain));
        assert_eq!(text(&output.stderr), text(&plain.stderr));
    });
}

#[test]
fn two_hundred_execs_at_once() {
    for_each_user(|world| {
        let script = script(
            world,
            b"for i in {1..200}; do sh -c \"echo $i\" & done > out; wait; sort -n out | uniq | wc -l\n",
        );
        let rules = "prefix_rule([\"sh\"], execution = \"unsandboxed\")";
        for rules in ["", rules] {
            let output = run(world, rules, &script);
            assert_eq!((stdout(&output).as_str(), status(&output)), ("200", 0), "{}", text(&output.stderr));
        }
    });
}
