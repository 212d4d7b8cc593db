//! What a process of its own is told besides its configuration file: by its environment and the kernel's command line.

use image::{ImageConfig, ProxyConfig};

use crate::config::{CdhConfig, ConfigError, Credential, KbcConfig};

/// Environment and kernel command line, as upstream reads them.
pub(crate) struct Surroundings<'a> {
    pub(crate) environment: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) kernel: &'a dyn Fn(&str) -> Option<String>,
}

impl Surroundings<'_> {
    /// The configuration in the file, if there is one, with what the file leaves open.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that can't be honoured.
    pub(crate) fn complete(&self, file: Option<CdhConfig>) -> Result<CdhConfig, ConfigError> {
        let mut config = match file {
            Some(config) => config,
            None => CdhConfig { kbc: self.kbc()?, ..CdhConfig::default() },
        };
        config.kbc.kbs_cert = config.kbc.kbs_cert.or_else(|| self.variable("KBS_CERT"));
        config.aa.aa_socket = config.aa.aa_socket.or_else(|| self.variable("AA_SOCKET"));
        config.skip_sealed_secret_verification |=
            self.variable("SKIP_SEALED_SECRET_VERIFICATION").as_deref() == Some("true");
        if let Some(list) = (self.kernel)("cdh.kbs_resources") {
            config.credentials.extend(Credential::list(&list)?);
        }
        let mut images = config.image.unwrap_or_else(|| self.images());
        if let Some(uri) = self.variable("CDH_DEFAULT_IMAGE_AUTHENTICATED_REGISTRY_CREDENTIALS") {
            images.authenticated_registry_credentials_uri = Some(uri);
        }
        config.image = Some(images);
        let files = self.variable("OFFLINE_FS_KBC_EXTRA_FILE_PATH").unwrap_or_default();
        let files = files.split(',').map(str::trim).filter(|path| !path.is_empty());
        config.places.offline.extend(files.map(Into::into));
        config.places.aliyun = self.variable("ALIYUN_IN_GUEST_KEY_PATH").map(Into::into);
        config.places.aws = self.variable("AWS_IN_GUEST_KEY_PATH").map(Into::into);
        config.validate()?;
        Ok(config)
    }

    /// Without a file: the key broker of the environment, or of the kernel's command line, or files of the guest.
    fn kbc(&self) -> Result<KbcConfig, ConfigError> {
        match self.variable("AA_KBC_PARAMS").or_else(|| (self.kernel)("agent.aa_kbc_params")) {
            Some(params) => KbcConfig::from_params(&params),
            None => Ok(KbcConfig::offline()),
        }
    }

    /// Without a table `image`.
    fn images(&self) -> ImageConfig {
        let verified = (self.kernel)("agent.enable_signature_verification").as_deref() == Some("true");
        ImageConfig {
            authenticated_registry_credentials_uri: (self.kernel)("agent.image_registry_auth"),
            image_security_policy_uri: (self.kernel)("agent.image_policy_file").filter(|_| verified),
            image_pull_proxy: ProxyConfig {
                https_proxy: (self.kernel)("agent.https_proxy"),
                http_proxy: (self.kernel)("agent.http_proxy"),
                no_proxy: (self.kernel)("agent.no_proxy"),
            },
            ..ImageConfig::default()
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_all_comes_from_around() {
        let config = complete(
            None,
            &[
                ("AA_KBC_PARAMS", "cc_kbc::https://kbs:8080"),
                ("KBS_CERT", "PEM"),
                ("AA_SOCKET", "unix:///aa.sock"),
                ("SKIP_SEALED_SECRET_VERIFICATION", "true"),
                ("OFFLINE_FS_KBC_EXTRA_FILE_PATH", "/a.json,/b.json"),
                ("AWS_IN_GUEST_KEY_PATH", "/aws"),
            ],
            &[
                ("agent.aa_kbc_params", "cc_kbc::https://kernel"),
                ("cdh.kbs_resources", "kbs:///a/b/c::/run/confidential-containers/cdh/kbs/k"),
                ("agent.image_registry_auth", "kbs:///default/credential/1"),
                ("agent.https_proxy", "http://proxy:1"),
                ("agent.image_policy_file", "kbs:///default/policy/1"),
                ("agent.enable_signature_verification", "true"),
            ],
        )
        .unwrap();

        assert_eq!(config.kbc.url.as_deref(), Some("https://kbs:8080"));
        assert_eq!(config.kbc.kbs_cert.as_deref(), Some("PEM"));
        assert_eq!(config.aa.aa_socket.as_deref(), Some("unix:///aa.sock"));
        assert!(config.skip_sealed_secret_verification);
        assert_eq!(config.credentials.len(), 1);
        assert!(config.places.offline.ends_with(&["/a.json".into(), "/b.json".into()]));
        assert_eq!(config.places.aws, Some("/aws".into()));
        let images = config.image.unwrap();
        assert_eq!(images.authenticated_registry_credentials_uri.as_deref(), Some("kbs:///default/credential/1"));
        assert_eq!(images.image_security_policy_uri.as_deref(), Some("kbs:///default/policy/1"));
        assert_eq!(images.image_pull_proxy.https_proxy.as_deref(), Some("http://proxy:1"));
    }

    #[test]
    fn a_files_own_words_count_first() {
        let file = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://file\"\nkbs_cert = \"FILE\"\n[image]\n";
        let config = complete(
            Some(file),
            &[("AA_KBC_PARAMS", "cc_kbc::https://kbs"), ("KBS_CERT", "PEM")],
            &[("agent.image_registry_auth", "kbs:///default/credential/1")],
        );
        let config = config.unwrap();
        assert_eq!((config.kbc.url.as_deref(), config.kbc.kbs_cert.as_deref()), (Some("https://file"), Some("FILE")));
        assert_eq!(config.image.unwrap().authenticated_registry_credentials_uri, None);

        let over = [("CDH_DEFAULT_IMAGE_AUTHENTICATED_REGISTRY_CREDENTIALS", "kbs:///x/y/z")];
        let images = complete(Some(file), &over, &[]).unwrap().image.unwrap();
        assert_eq!(images.authenticated_registry_credentials_uri.as_deref(), Some("kbs:///x/y/z"));
    }

    #[test]
    fn only_the_exact_word_turns_verification_off() {
        for (value, skipped) in [("true", true), ("True", false), ("1", false), ("", false), ("true ", false)] {
            let config = complete(None, &[("SKIP_SEALED_SECRET_VERIFICATION", value)], &[]).unwrap();
            assert_eq!(config.skip_sealed_secret_verification, skipped, "{value:?}");
        }
    }

    #[test]
    fn the_kernel_is_asked_last_and_files_are_left() {
        let kernel = [("agent.aa_kbc_params", "cc_kbc::https://kernel")];
        assert_eq!(complete(None, &[], &kernel).unwrap().kbc.url.as_deref(), Some("https://kernel"));
        assert!(complete(None, &[], &[]).unwrap().kbc.is_offline());
        assert!(complete(None, &[("AA_KBC_PARAMS", "offline_fs_kbc::null")], &kernel).unwrap().kbc.is_offline());
        for (name, value) in [("agent.aa_kbc_params", "cc_kbc"), ("agent.aa_kbc_params", "eaa_kbc::x")] {
            assert!(complete(None, &[], &[(name, value)]).is_err(), "{value}");
        }
        assert!(complete(None, &[], &[("cdh.kbs_resources", "kbs:///a/b/c::/etc/passwd")]).is_err());
    }

    fn complete(
        file: Option<&str>,
        environment: &[(&str, &str)],
        kernel: &[(&str, &str)],
    ) -> Result<CdhConfig, ConfigError> {
        let find = |list: &[(&str, &str)], name: &str| {
            list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let surroundings =
            Surroundings { environment: &|name| find(environment, name), kernel: &|name| find(kernel, name) };
        surroundings.complete(file.map(|text| CdhConfig::parse(text).unwrap()))
    }
}
