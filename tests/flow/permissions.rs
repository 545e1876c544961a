//! Profiles and legacy modes as JSON, as harnesses have them.

use postern_tests::{World, finish, for_each_user, stdout, text};

fn convert(world: &World, content: &str, to: &str) -> Result<serde_json::Value, String> {
    let file = world.write("in.json", content);
    let output = finish(world.postern().args(["sandbox", "convert", "--to", to]).arg(file));
    if output.status.success() {
        Ok(serde_json::from_str(&stdout(&output)).unwrap())
    } else {
        Err(text(&output.stderr))
    }
}

#[test]
fn a_session_starts_under_a_profile_in_json() {
    for_each_user(|world| {
        world.write("ws/.env", "SECRET");
        std::fs::create_dir(world.workspace.join("out")).unwrap();
        world.own();
        let json = world.write(
            "p.json",
            r#"{"network": {"enabled": false}, "fileSystem": {"entries": [
                {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
                {"path": {"type": "glob_pattern", "pattern": "*.env"}, "access": "none"},
                {"path": {"type": "special", "value": {"kind": "unknown", "path": ":later"}}, "access": "write"},
                {"path": {"type": "path", "path": "ws/out"}, "access": "write"}]}}"#,
        );
        let script = "cat .env; touch out/yes no; ls";
        let output = finish(world.postern().arg("--permissions").arg(json).args(["--", "-fc", script]));
        assert_eq!(stdout(&output), "out", "{}", text(&output.stderr));
        assert!(world.workspace.join("out/yes").exists());
    });
}

#[test]
fn legacy_modes_and_profiles_become_each_other_and_never_wider() {
    for_each_user(|world| {
        let legacy = r#"{"type":"workspaceWrite","writableRoots":["/srv"],"networkAccess":true,"excludeTmpdirEnvVar":false,"excludeSlashTmp":true}"#;
        let profile = convert(world, legacy, "permissions").unwrap();
        assert_eq!(profile["network"]["enabled"], true);
        let again = convert(world, &profile.to_string(), "legacy").unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(legacy).unwrap());
        // Read-only and one more directory is none of the old modes.
        let narrow = r#"{"fileSystem": {"entries": [
            {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
            {"path": {"type": "path", "path": "/srv"}, "access": "write"}]}}"#;
        let refused = convert(world, narrow, "legacy").unwrap_err();
        assert!(refused.contains("writes the working directory"), "{refused}");
    });
}

#[test]
fn what_was_granted_is_within_what_was_asked() {
    for_each_user(|world| {
        let asked = world
            .write("asked.json", r#"{"network": {"enabled": true}, "fileSystem": {"write": ["/srv/a"]}}"#);
        let given = world
            .write("given.json", r#"{"fileSystem": {"write": ["/srv/a/b", "/srv"], "read": ["/srv/a"]}}"#);
        let output = finish(world.postern().args(["sandbox", "intersect"]).arg(asked).arg(given));
        let both: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(both["fileSystem"]["write"], serde_json::json!(["/srv/a/b"]));
        assert_eq!(both["fileSystem"]["read"], serde_json::json!(["/srv/a"]));
        assert_eq!(both["network"]["enabled"], false);
    });
}

#[test]
fn what_a_request_would_add_can_be_seen() {
    for_each_user(|world| {
        let more = world.write("more.json", r#"{"fileSystem": {"write": ["/srv"]}}"#);
        let mut command = world.postern();
        command.args(["sandbox", "explain", "--path", "/srv/x", "--add"]).arg(more);
        let said = stdout(&finish(&mut command));
        assert!(said.starts_with("write  /srv/x"), "{said}");
    });
}

#[test]
fn explain_knows_what_is_covered_and_what_is_the_sandboxs_own() {
    for_each_user(|world| {
        let state = world.root.join("state/postern/journal");
        for (path, access, why) in [
            (state.to_str().unwrap(), "none", "is Postern's own"),
            ("/dev/null", "write", "a /dev of its own"),
            ("/dev/shm/x", "write", "a /dev of its own"),
            ("/dev/mem", "none", "a /dev of its own"),
            ("/proc/1/environ", "read", "a /proc, of its processes, of its own"),
            ("missing/../../x", "none", "through a directory that does not exist"),
            (".git/hooks", "read", "(protected)"),
        ] {
            // The state directory is made by the first session.
            let _started = finish(world.postern().args(["--", "-fc", "true"]));
            let output = finish(world.postern().args(["sandbox", "explain", "--path", path]));
            let said = stdout(&output);
            assert!(said.starts_with(&format!("{access}  /")) && said.contains(why), "{said}");
        }
    });
}

#[test]
fn what_a_profile_gives_in_vain_is_said() {
    for_each_user(|world| {
        let config = world.write(
            "c.toml",
            "profile = 'p'\n[permissions.p.filesystem]\n':root' = 'read'\n':project_rots' = 'write'\n'~/none/there' = 'write'\n",
        );
        let config = config.to_str().unwrap();
        let output = finish(world.postern().args(["--config", config, "--", "-fc", "print started"]));
        assert_eq!(stdout(&output), "started");
        assert!(text(&output.stderr).contains("`:project_rots` is not known"), "{}", text(&output.stderr));
        let notes = world.records()[0]["notes"].to_string();
        assert!(notes.contains("none/there does not exist: nothing is given there"), "{notes}");
    });
}
