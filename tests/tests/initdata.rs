//! Initdata as its owner handles it: built from files, shown, and the same from its disk.

#![allow(clippy::unwrap_used)]

use tests::{Lab, run, try_run};
use wire::initdata::InitData;

#[test]
fn what_is_built_is_shown_with_its_digest() {
    let lab = Lab::new();
    let policy = lab.file("policy.rego", "package agent_policy\n# \"quotes\" and '''more'''\n");
    let aa = lab.file("aa.toml", "[token_configs.kbs]\nurl = \"https://kbs\"\n");
    let output = lab.path().join("initdata.toml");
    let arguments = |algorithm: &str| {
        let paths = [&policy, &aa, &output].map(|path| path.display().to_string());
        let [policy, aa, output] = paths;
        ["initdata", "build", "--policy", &policy, "--aa", &aa, "--algorithm", algorithm, "--output", &output]
            .map(str::to_owned)
    };

    for (algorithm, length) in [("sha256", 64), ("sha384", 96), ("sha512", 128)] {
        let digest = run(Lab::program("cocoon"), arguments(algorithm));
        assert_eq!(digest.trim().len(), length);

        let text = std::fs::read_to_string(&output).unwrap();
        let shown = run(Lab::program("cocoon"), ["initdata".as_ref(), "show".as_ref(), output.as_os_str()]);
        assert_eq!(shown, format!("{text}\n{digest}"));

        let document = InitData::parse(text).unwrap();
        assert_eq!(document.get("policy.rego"), Some(std::fs::read_to_string(&policy).unwrap().as_str()));
        let mut disk = Vec::new();
        document.write_disk(&mut disk).unwrap();
        let disk = lab.file("initdata.image", disk);
        let of_disk =
            run(Lab::program("cocoon"), ["initdata".as_ref(), "show".as_ref(), "--digest".as_ref(), disk.as_os_str()]);
        assert_eq!(of_disk, digest);
    }
}

#[test]
fn an_unknown_algorithm_is_refused() {
    let finished =
        try_run(Lab::program("cocoon"), ["initdata", "build", "--algorithm", "md5", "--output", "/dev/null"]);
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("sha256"), "{finished}");
}
