//! The demonstration: one confidential pod from real files to a released secret, then what an attacker gets.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use sandbox::{InitDataDisk, SandboxConfig, SandboxName};
use tests::{Encrypted, Image, InitDataFiles, Lab, Pod, Registry, Trustee, agent_policy, run, try_run};
use wire::initdata::InitData;

fn main() -> ExitCode {
    let mut report = Report::default();
    let demo = Demo::set_up(&mut report);
    demo.secret_is_released(&mut report);
    demo.changed_disk_is_refused(&mut report);
    demo.changed_initdata_gets_no_key(&mut report);
    demo.permissive_policy_gets_no_key(&mut report);
    let lab = demo.lab.path().to_owned();
    drop(demo);
    report.verdict("nothing stays behind", leftovers(&lab));
    report.end()
}

/// What stands when the pods start.
struct Demo {
    // Dropped in this order: first what runs, then the folder.
    trustee: Trustee,
    registry: Registry,
    lab: Lab,
    image: String,
    files: InitDataFiles,
    initdata: PathBuf,
    secret: String,
}

impl Demo {
    fn set_up(report: &mut Report) -> Self {
        let lab = Lab::new();
        report.step("starting Trustee (TLS, SQLite, admin key, sample verifier enabled for this demonstration)");
        let trustee = lab.trustee();
        report.note(&format!("Trustee answers at {} in the guest", trustee.guest_url()));
        report.step("starting a container registry (TLS)");
        let registry = lab.registry();

        report.step("making an OCI image from this machine's files, and encrypting its layers");
        let script = format!(
            "echo \"{PLAIN_TEXT}\" >/tmp/plain\nwget -q -O - http://127.0.0.1:8006/cdh/resource/{SECRET_PATH}\necho\n\
             exec sleep 3600"
        );
        let Encrypted { image, key } = Image::busybox(&lab, "demo", &script).encrypted(&format!("kbs:///{KEY_PATH}"));
        let image = registry.push(image.layout(), "demo/app");
        report.note(&format!("pushed {image}"));

        report.step("giving Trustee the layers' key, a secret, reference values and a resource policy");
        let secret = format!("the-owner's-secret-{}", std::process::id());
        trustee.secret(KEY_PATH, &key);
        trustee.secret(SECRET_PATH, &lab.file("secret", &secret));
        trustee.sample_reference_values();
        let files = InitDataFiles::new(agent_policy(&image), &trustee, &registry);
        let (initdata, digest) = files.build(&lab, "initdata");
        trustee.resource_policy(&resource_policy(&digest));
        report.note(&format!("the resource policy expects initdata {digest}"));
        Self { trustee, registry, lab, image, files, initdata, secret }
    }

    /// Steps 4 and 5 (a) and (d) of the story: the pod prints its secret; the host has seen none of it.
    fn secret_is_released(&self, report: &mut Report) {
        report.step("booting the pod; it attests, fetches the key, pulls and decrypts the image in the guest");
        let pod = Pod::run("demo", &self.image, Some(&self.initdata), &[]);
        pod.process().wait_for(&self.secret, LIMIT);
        report.verdict("the container printed the secret that Trustee released to it", Ok(()));

        report.step("looking for the secret and the image's plain text on the host");
        let found = self.search_host(&pod);
        report.verdict("(a) disk, QEMU's arguments and logs hold neither the secret nor a layer's plain text", found);

        report.step("running a command in the container");
        let exec = try_run(Lab::program("cocoon"), ["exec", pod.name(), "--", "cat", "/tmp/plain"]);
        report.verdict(
            "(d) exec is denied by the policy, which names its rule",
            expect(
                !exec.status.success() && exec.stderr.contains("data.agent_policy.ExecProcessRequest"),
                &exec.stderr,
            ),
        );
        report.note(&exec.stderr);

        pod.process().interrupt();
        let folder = pod.folder();
        let (status, text) = pod.into_process().wait(LIMIT);
        report.verdict("Ctrl-C ended the pod", expect(status.code() == Some(130) && !folder.exists(), &text));
        let timeline: Vec<_> = text.lines().filter(|line| line.contains(" s  ")).collect();
        println!("\n  timeline of the pod\n{}\n", timeline.join("\n"));
        let complete = ["VMM start", "kernel up", "guestd ready", "attested", "image ready", "first output"];
        let missing: Vec<_> = complete.iter().filter(|event| !text.contains(*event)).collect();
        report.verdict("the timeline is complete", expect(missing.is_empty(), &format!("{missing:?} missing")));
    }

    /// 5 (b), first half: one byte of the disk changed, the bound digest as it was.
    fn changed_disk_is_refused(&self, report: &mut Report) {
        report.step("changing one byte of the initdata on its disk alone");
        let original = InitData::parse(fs::read_to_string(&self.initdata).unwrap()).unwrap();
        let changed = InitData::parse(original.text().replacen("exec_commands", "exec_cOmmands", 1)).unwrap();
        let image = guest_image::GuestImage::open(&Lab::guest_image()).unwrap();
        let name = SandboxName::parse(&format!("changed-{}", std::process::id())).unwrap();
        let guest = sandbox::GuestFiles {
            kernel: image.kernel.clone(),
            initramfs: image.initramfs.clone(),
            command_line: guest_image::COMMAND_LINE.to_owned(),
        };
        let config = SandboxConfig {
            initdata: Some(InitDataDisk { document: changed, digest: original.digest() }),
            ..SandboxConfig::new(name, guest)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(sandbox::Sandbox::start(config)).map(drop);
        let text = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
        report.verdict(
            "(b) the guest refuses before any of it is applied",
            expect(
                matches!(outcome, Err(sandbox::Error::Refused(_))) && text.contains("nothing of it was applied"),
                &text,
            ),
        );
        report.note(&text);
    }

    /// 5 (b), second half: document and digest changed together.
    fn changed_initdata_gets_no_key(&self, report: &mut Report) {
        report.step("changing the initdata and its digest together, as a host without a TEE can");
        let policy = self.files.policy.replace("UpdateRoutesRequest := true", "UpdateRoutesRequest if true");
        self.expect_no_key("consistent", policy, "(b) the guest boots and gets no key", INIT_DATA_CLAIM, report);
    }

    /// 5 (c): the owner's resource policy looks into the agent policy and does not accept this one.
    fn permissive_policy_gets_no_key(&self, report: &mut Report) {
        report.step("asking for the key with an agent policy that allows exec");
        self.trustee.resource_policy(POLICY_ON_EXEC);
        let policy = self.files.policy.replace("\"exec_commands\": []", "\"exec_commands\": [[\"sh\"]]");
        self.expect_no_key("permissive", policy, "(c) a policy that is not accepted gets no key", EXEC_CLAIM, report);
    }

    fn expect_no_key(&self, name: &str, policy: String, verdict: &str, claim: &str, report: &mut Report) {
        let releases = self.releases();
        let files = InitDataFiles { policy, aa: self.files.aa.clone(), cdh: self.files.cdh.clone() };
        let (initdata, _) = files.build(&self.lab, name);
        let (status, text) = Pod::run(name, &self.image, Some(&initdata), &[]).into_process().wait(LIMIT);
        let Some(reference) = reference(&text) else {
            report.verdict(verdict, Err(format!("the refusal has no reference: {text}")));
            return;
        };
        let explanation = self.trustee.explain(reference);
        let refused = !status.success() && !text.contains(&self.secret) && self.releases() == releases;
        report.verdict(verdict, expect(refused && explanation.contains(claim), &format!("{text}\n{explanation}")));
        report.note(&format!("the host is told: {}", text.lines().last().unwrap_or_default()));
        report.note(&format!("the owner is told:\n{explanation}"));
    }

    fn releases(&self) -> usize {
        self.trustee.audit().iter().filter(|record| record["event"] == "release").count()
    }

    /// Every file that the pod, the registry and the host's logs have, and QEMU's argument list.
    fn search_host(&self, pod: &Pod) -> Result<(), String> {
        let log = pod.process().stderr();
        expect(log.contains("cocoon: ready"), "the log does not hold the guest's console")?;
        let mut places = vec![(PathBuf::from("cocoon's log with the guest's console"), log.into_bytes())];
        for folder in [pod.folder(), self.registry.data()] {
            collect_files(&folder, &mut places);
        }
        places.push((PathBuf::from("the arguments of all processes"), all_arguments()));
        for (place, content) in &places {
            for needle in [self.secret.as_str(), PLAIN_TEXT] {
                if content.windows(needle.len()).any(|window| window == needle.as_bytes()) {
                    return Err(format!("{} holds {needle:?}", place.display()));
                }
            }
        }
        // The search itself is checked: it does find what is there.
        let reached =
            |text: &str| places.iter().any(|(_, content)| content.windows(text.len()).any(|w| w == text.as_bytes()));
        expect(reached("initdata") && reached("qemu-system"), "the search did not reach the pod's files")
    }
}

/// The demonstration's steps and verdicts.
#[derive(Default)]
struct Report {
    steps: usize,
    failed: Vec<String>,
    passed: usize,
}

impl Report {
    fn step(&mut self, text: &str) {
        self.steps += 1;
        println!("[{}] {text}", self.steps);
    }

    fn note(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("      {line}");
        }
    }

    fn verdict(&mut self, what: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("  ok  {what}");
            }
            Err(reason) => {
                println!("FAIL  {what}");
                self.note(&reason);
                self.failed.push(what.to_owned());
            }
        }
    }

    fn end(self) -> ExitCode {
        println!("\n{} verdicts hold, {} do not", self.passed, self.failed.len());
        for what in &self.failed {
            println!("FAIL  {what}");
        }
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// The published example with the digest filled in, in the base64 form that the claim has.
fn resource_policy(digest: &str) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/resource-policy.rego");
    let claim = base64::engine::general_purpose::STANDARD.encode(from_hex(digest));
    fs::read_to_string(example).unwrap().replace("REPLACE_WITH_THE_DIGEST_OF_YOUR_INITDATA", &claim)
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The reference id in a refusal's text.
fn reference(text: &str) -> Option<&str> {
    let rest = text.split("reference ").nth(1)?;
    rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next()
}

fn collect_files(folder: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect_files(&path, into);
        } else if kind.is_file() {
            into.push((path.clone(), fs::read(&path).unwrap_or_default()));
        }
    }
}

fn all_arguments() -> Vec<u8> {
    let own = std::process::id().to_string();
    let mut arguments = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|b| b.is_ascii_digit()) && name != own {
            arguments.extend(fs::read(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    arguments
}

/// What must be gone: processes and mounts that name the laboratory, and its folder.
fn leftovers(lab: &Path) -> Result<(), String> {
    let name = lab.display().to_string();
    let arguments = String::from_utf8_lossy(&all_arguments()).replace('\0', " ");
    expect(!arguments.contains(&name), "a process of the demonstration still runs")?;
    expect(!fs::read_to_string("/proc/mounts").unwrap().contains(&name), "a mount stays behind")?;
    expect(!lab.exists(), "the folder stays behind")?;
    let links = run("ip", ["-o", "link"]);
    expect(!links.contains("cocoon"), "a network device stays behind")
}

const KEY_PATH: &str = "default/key/demo";
const SECRET_PATH: &str = "default/demo/secret";
/// Stands in a layer, and nowhere else.
const PLAIN_TEXT: &str = "plain text of an encrypted layer";
const INIT_DATA_CLAIM: &str = "/submods/cpu0/ear.veraison.annotated-evidence/init_data";
const EXEC_CLAIM: &str =
    "/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims/agent_policy_claims/exec_commands";
/// Accepts any initdata whose agent policy has no exec.
const POLICY_ON_EXEC: &str = r#"package policy

import rego.v1

default allow := false

allow if {
	every expectation in expected {
		object.get(input, array.slice(split(expectation.claim, "/"), 1, 99), null) in expectation.values
	}
}

expected := [{
	"claim": "/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims/agent_policy_claims/exec_commands",
	"values": [[]],
}]
"#;
/// Software emulation on a machine that also does other work.
const LIMIT: Duration = Duration::from_secs(180);
