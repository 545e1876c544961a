//! What an asker hands over to a command that gets more than it has.

use postern_tests::{for_each_user, stdout, text};

#[test]
fn no_descriptor_takes_the_place_of_the_executable() {
    for_each_user(|world| {
        // Under every number that the command's own process could use for itself.
        let code = "import os\nf = os.open('evil', os.O_RDONLY)\n\
                    for n in range(3, 63):\n    if n != f: os.dup2(f, n, True)\n\
                    os.set_inheritable(f, True)\n\
                    os.execv(os.environ['SHELL_UNDER_TEST'], ['zsh', '-fc', '/bin/true RAN; print $?'])\n";
        let path = world.write("fill.py", code);
        let zsh = postern_tests::prefix().join("libexec/postern/zsh");
        let script =
            format!("cp /bin/echo evil; SHELL_UNDER_TEST={} python3 {}", zsh.display(), path.display());
        for execution in ["network", "turn_default", "unsandboxed"] {
            let rules = format!("prefix_rule(['true'], execution = '{execution}')");
            let output = world.session(&rules, &script);
            assert_eq!(stdout(&output), "0", "{execution}: {}", text(&output.stderr));
        }
    });
}

#[test]
fn no_request_socket_of_another_context_comes_along() {
    for_each_user(|world| {
        let rules = "prefix_rule(['python3'], execution = 'network')\nprefix_rule(['grep'], execution = 'unsandboxed')";
        let zsh = postern_tests::prefix().join("libexec/postern/zsh");
        let code = format!(
            "import os\nprint('began', flush=True)\nos.set_inheritable(5, True)\nos.environ['POSTERN_SOCKET'] = '5'\n\
             os.execv('{}', ['zsh', '-fc', 'grep Seccomp: /proc/self/status'])\n",
            zsh.display()
        );
        let path = world.write("other.py", code);
        let output = world.session(rules, &format!("exec 5<&63; python3 {}", path.display()));
        assert_eq!(stdout(&output), "began", "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("Bad file descriptor"), "{}", text(&output.stderr));
    });
}

#[test]
fn the_largest_commands_are_ordered_too() {
    for_each_user(|world| {
        let script = "ulimit -s unlimited; /bin/true ${(l:120000::x:)}; print $?; /bin/true {1..350000}; print $?; \
                      /bin/true {1..900000}; print $?; print lives";
        let output = world.session("prefix_rule(['true'], execution = 'unsandboxed')", script);
        // The last is too long for the kernel.
        assert_eq!(stdout(&output), "0\n0\n126\nlives", "{}", text(&output.stderr));
    });
}
