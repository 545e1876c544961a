//! `postern approve` on a terminal.

use std::process::Stdio;
use std::time::Duration;

use postern_tests::{World, eventually, for_each_user, prefix, stdout, text};

/// A terminal of the world's user, outside every session.
struct Terminal<'a> {
    world: &'a World,
    socket: String,
}

impl<'a> Terminal<'a> {
    fn new(world: &'a World) -> Self {
        let name = world.root.file_name().unwrap().to_str().unwrap();
        let terminal = Self { world, socket: format!("postern-{name}") };
        terminal.tmux(&["new-session", "-d", "-x", "100", "-y", "30", "PS1='% ' exec sh"]);
        terminal.shows("%");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = self.world.plain_command("tmux");
        command.env("TMUX_TMPDIR", &self.world.root).args(["-L", &self.socket, "-f", "/dev/null"]);
        let output = command.args(arguments).output().expect("tmux runs");
        assert!(output.status.success(), "tmux {arguments:?}: {}", text(&output.stderr));
        stdout(&output)
    }

    /// Types letters, or presses one key.
    fn types(&self, letters: &str) {
        self.tmux(&["send-keys", "-l", letters]);
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn says(&self, line: &str) {
        self.types(line);
        self.press("Enter");
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn shows(&self, part: &str) -> String {
        let mut screen = String::new();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !screen.contains(part) {
            assert!(std::time::Instant::now() < deadline, "{part} is not on the screen:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
            screen = self.screen();
        }
        screen
    }

    /// The shell is back, on a terminal as it was.
    fn is_normal(&self) {
        eventually("the screen is left", || self.tmux(&["display", "-p", "#{alternate_on}"]) == "0");
        self.says("clear; stty -a | tr ' ;' '\\n\\n' | grep -cx -e echo -e icanon -e isig; echo do''ne");
        let screen = self.shows("done");
        assert!(screen.contains("3\ndone"), "{screen}");
        assert_eq!(self.tmux(&["display", "-p", "#{cursor_flag}"]), "1");
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let mut command = self.world.plain_command("tmux");
        let _ended = command
            .env("TMUX_TMPDIR", &self.world.root)
            .args(["-L", &self.socket, "kill-server"])
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn a_person_answers_by_keys() {
    for_each_user(|world| {
        let told = world.write("tell", "#!/bin/sh\necho \"$2\" >>\"${0%/*}/home/told\"\n");
        world.plain("chmod", &["+x", told.to_str().unwrap()]);
        let script = "wait() { until [[ -e $1 ]] sleep 0.01 }; date +1; wait one; date +1; print ran; \
                      : > ran; wait two; date +1; print $?; wait three; date +2; print $?";
        let mut command = world.postern();
        command.arg("--rules").arg(world.write("r.rules", "prefix_rule(['date'], decision = 'prompt')\n"));
        command.args(["--", "-fc", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let terminal = Terminal::new(world);
        let approve = format!("{} approve", prefix().join("bin/postern").display());
        terminal.says(&format!("{approve} --bell --notify {}", told.display()));
        terminal.shows("nothing waits");
        let child = command.spawn().unwrap();
        // Its keys are shown once they count.
        let screen = terminal.shows("s session");
        for part in
            ["date +1", "[Waiting 1]", "Granted 0", "> ", "runs                /usr/bin/date", "answers"]
        {
            assert!(screen.contains(part), "{part}: {screen}");
        }
        assert!(screen.contains(world.workspace.to_str().unwrap()), "{screen}");
        // Nobody selected it: keys count from half a second later on.
        std::thread::sleep(Duration::from_millis(700));
        terminal.types("s");
        terminal.shows("gone: session, by ");
        world.write("ws/one", "");
        eventually("it runs again, silently", || world.workspace.join("ran").exists());
        assert!(terminal.shows("Waiting 0").contains("Granted 1"));

        terminal.types("/nothing is like this");
        terminal.shows("show only: nothing is like this_");
        terminal.press("Enter");
        terminal.shows("nothing matches the filter");
        terminal.press("Escape");
        terminal.shows("gone     ");

        terminal.press("Tab");
        let granted = terminal.shows("[Granted 1]");
        assert!(granted.contains("as long as the session"), "{granted}");
        terminal.press("Tab");
        let history = terminal.shows("[History 1]");
        assert!(history.contains("answer              session"), "{history}");
        terminal.press("Tab");
        terminal.press("Tab");
        terminal.shows("[Granted 1]");
        terminal.types("r");
        terminal.shows("[Granted 0]");
        terminal.shows("gone: used up, expired or revoked");

        world.write("ws/two", "");
        terminal.shows("Waiting 1");
        terminal.press("Tab");
        terminal.press("Tab");
        terminal.shows("[Waiting 1]");
        terminal.types("d");
        terminal.shows("select another one");
        terminal.types("j");
        terminal.types("d");
        terminal.shows("gone: deny, by ");

        // What has nobody looking at it goes on waiting.
        world.write("ws/three", "");
        terminal.shows("Waiting 1");
        terminal.types("q");
        terminal.is_normal();
        terminal.says(&format!("timeout --foreground 3 {approve}"));
        terminal.shows("[Waiting 1]");
        terminal.is_normal();
        terminal.says(&format!("{approve} --line"));
        let shown = terminal.shows("answers             once");
        let id = shown.lines().find_map(|line| line.strip_prefix("prompt ")).unwrap();
        let id = id.split_whitespace().next().unwrap();
        terminal.says(&format!("{id} once"));
        terminal.shows(&format!("prompt {id}  once"));
        terminal.press("C-c");
        terminal.says(&approve);
        terminal.shows("nothing waits");
        terminal.press("C-c");
        terminal.is_normal();

        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "1\n1\nran\n126\n2\n0", "{}", text(&output.stderr));
        let told = std::fs::read_to_string(world.root.join("home/told")).unwrap();
        assert_eq!(told, "date +1\ndate +1\ndate +2\n");
    });
}

#[test]
fn a_skills_script_is_accepted_for_the_session_and_asks_again_once_it_is_edited() {
    for_each_user(|world| {
        let skill = world.root.join("skills/tool");
        std::fs::create_dir_all(skill.join("scripts")).unwrap();
        let declared = "---\nname: tool\ndescription: writes\npermissions: {file_system: {read: [/]}}\n---\n";
        std::fs::write(skill.join("SKILL.md"), declared).unwrap();
        let tool = skill.join("scripts/tool");
        std::fs::write(&tool, "#!/bin/sh\necho first\n").unwrap();
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        world.own();
        let script = format!(
            "wait() {{ until [[ -e $1 ]] sleep 0.01 }}; {0}; {0}; : > twice; wait edited; {0}",
            tool.display()
        );
        let mut command = world.postern();
        command.arg("--skills").arg(world.root.join("skills")).args(["--", "-fc", &script]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let terminal = Terminal::new(world);
        terminal.says(&format!("{} approve", prefix().join("bin/postern").display()));
        terminal.shows("the skill tool declares permissions of its own");
        std::thread::sleep(Duration::from_millis(700));
        terminal.press("NPage");
        terminal.press("NPage");
        terminal.types("s");
        terminal.shows("gone: session, by ");
        eventually("it runs again, silently", || world.workspace.join("twice").exists());
        std::fs::write(&tool, "#!/bin/sh\necho other\n").unwrap();
        world.write("ws/edited", "");
        terminal.shows("Waiting 1");
        terminal.types("jd");
        terminal.shows("gone: deny, by ");
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), "first\nfirst", "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(126));
    });
}
