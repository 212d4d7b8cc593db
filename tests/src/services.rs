//! The guest's services on this machine: attestation agent, data hub and workload API, each a process by its name.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use toml::Table;

use crate::{Daemon, Lab, Trustee, set};

/// They run, and take secrets from one Trustee. What a container asks for goes through all three.
pub struct Services {
    url: String,
    // Ended in this order.
    _workload_api: Daemon,
    _data_hub: Daemon,
    _agent: Daemon,
}

impl Services {
    /// Starts them from the program `guestd`, with a key of this kind, in a folder of the laboratory.
    ///
    /// # Panics
    /// If one of them does not start.
    pub fn start(lab: &Lab, guestd: &Path, trustee: &Trustee, key_algorithm: &str) -> Self {
        let folder = lab.path().join(format!("services-{key_algorithm}"));
        fs::create_dir(&folder).unwrap();
        let address = |name: &str| format!("unix://{}", folder.join(name).display());
        let (agent, hub) = (address("aa.sock"), address("cdh.sock"));
        let file = |name: &str, settings: &[(&str, &str)]| {
            let mut document = Table::new();
            settings.iter().for_each(|(key, value)| set(&mut document, key, *value));
            let path = folder.join(name);
            fs::write(&path, toml::to_string(&document).unwrap()).unwrap();
            path.display().to_string()
        };
        let (url, certificate) = (trustee.url(), trustee.certificate());
        let aa = file(
            "aa.toml",
            &[
                ("token_configs.kbs.url", &url),
                ("token_configs.kbs.cert", &certificate),
                ("token_configs.kbs.tee_key_algorithm", key_algorithm),
            ],
        );
        let images = folder.join("image").display().to_string();
        let cdh = file(
            "cdh.toml",
            &[
                ("socket", &hub),
                ("aa.aa_socket", &agent),
                ("kbc.name", "cc_kbc"),
                ("kbc.url", &url),
                ("kbc.kbs_cert", &certificate),
                ("image.work_dir", &images),
            ],
        );
        let start = |arguments: &[&str], ready: &str| {
            let mut command = Command::new(guestd);
            // Set, so that the hub writes no such file to /run.
            command.args(arguments).env("OCICRYPT_KEYPROVIDER_CONFIG", "/nowhere").env_remove("RUST_LOG");
            let process = Daemon::start(&mut command);
            let line = process.wait_for(ready, LIMIT);
            (process, line)
        };
        let (_agent, _) = start(&["attestation-agent", "-a", &agent, "-c", &aa], "serving ttrpc");
        let (_data_hub, _) = start(&["confidential-data-hub", "-c", &cdh], "serving ttrpc");
        let workload_api = ["api-server-rest", "-b", "127.0.0.1:0", "-f", "all", "-c", &hub, "-a", &agent];
        let (_workload_api, line) = start(&workload_api, "serving the workload API");
        let bound = line.split("address=Some(").nth(1).and_then(|rest| rest.split(')').next());
        let url = format!("http://{}", bound.unwrap_or_else(|| panic!("no address in {line:?}")));
        Self { url, _workload_api, _data_hub, _agent }
    }

    /// Where a container would ask.
    pub fn url(&self) -> &str {
        &self.url
    }
}

const LIMIT: Duration = Duration::from_secs(60);
