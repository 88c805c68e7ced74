//! Rules hold, whatever variables say.

use super::*;

fn rules(lab: &Lab, rules: &str) {
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &format!("keys = [\"{}\"]\n{rules}", key(lab, Dpu)));
}

/// tar runs what TAR_OPTIONS says, and Python what PYTHONSTARTUP names.
#[test]
fn a_rule_with_arguments_is_not_escaped_by_a_variable() {
    let lab = Lab::up();
    rules(
        &lab,
        "[[exec]]\nallow = '/usr/bin/tar'\nargs = ['-cf', '/dev/null', '/etc/hostname']\n\
         [[exec]]\nallow = '/usr/bin/printenv'\nargs = []\nenv = ['MINE']\n",
    );
    let _server = serve(&lab);
    let options = "--checkpoint=1 --checkpoint-action=exec=/usr/bin/touch${IFS}/tmp/ran";
    lab.run_with(
        Dpu,
        &[addr()[0], ("TAR_OPTIONS", options)],
        &[bin("rexec"), "tar", "-cf", "/dev/null", "/etc/hostname"],
    )
    .ok();
    nothing_ran(&lab);
    let callers =
        [addr()[0], ("MINE", "1"), ("LANG", "C"), ("TZ", "/tmp/zone"), ("HOME", "/tmp"), ("ALSA_CONFIG_PATH", "/x")];
    let said = lab.run_with(Dpu, &callers, &[bin("rexec"), "printenv"]).ok();
    let mut lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("TERM=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["LANG=C", "MINE=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    let said = lab.host(&[bin("farside"), "policy", "check", "dpu", "exec", "/usr/bin/printenv"]).ok();
    assert!(said.contains("with MINE, plain values of LANG TERM TZ COLUMNS LINES LC_*, and PATH=/usr/sbin:"), "{said}");
}
