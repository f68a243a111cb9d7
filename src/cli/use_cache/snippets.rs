//! `narvault use --print`: the same settings for configurations that must not be edited by a program.
//!
//! Never holds a token: private caches get a line that says where one goes.

use clap::ValueEnum;

use crate::client::nix_conf::Used;
use crate::nix::trust::Trusted;

// Not documentation, which clap would print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for nix.conf
    NixConf,
    /// A NixOS module
    Nixos,
    /// `nixConfig` of a flake
    Flake,
    /// A home-manager module
    HomeManager,
    /// A step of a GitHub Actions workflow
    GithubActions,
}

/// The text for `format`; `netrc_host` is the host of a private cache.
pub fn snippet(format: Format, used: &Used, netrc_host: Option<&str>) -> String {
    let Used { url, public_keys } = used;
    let netrc_line = |host: &str| format!("machine {host} login narvault password nvt_...");
    let netrc = netrc_host.map(netrc_line);
    let trusted = Trusted { url, public_keys, netrc: netrc.as_deref() };
    let (quoted, keys) = (trusted.quoted_keys(), public_keys.join(" "));
    match format {
        Format::NixConf => trusted.nix_conf(),
        Format::Nixos => trusted.nixos(),
        Format::Flake => trusted.flake(),
        Format::HomeManager => {
            let netrc = netrc_host.map_or(String::new(), |host| {
                format!(
                    "    # The cache is private. A file that is not in the store holds: {}\n    \
                     netrc-file = \"${{config.home.homeDirectory}}/.config/nix/netrc\";\n",
                    netrc_line(host)
                )
            });
            let arguments = if netrc.is_empty() { "{ pkgs, ... }:" } else { "{ config, pkgs, ... }:" };
            format!(
                "{arguments}\n{{\n  # The daemon obeys only users in `trusted-users`.\n  nix.package = pkgs.nix;\n  nix.settings = {{\n    \
                 extra-substituters = [ \"{url}\" ];\n    extra-trusted-public-keys = [ {quoted} ];\n{netrc}  }};\n}}\n"
            )
        }
        Format::GithubActions => {
            let netrc = netrc_host.map_or((String::new(), String::new()), |host| {
                let step = format!(
                    "- name: Token of the cache\n  env:\n    NARVAULT_TOKEN: ${{{{ secrets.NARVAULT_TOKEN }}}}\n  run: |\n    \
                     (umask 077; echo \"machine {host} login narvault password $NARVAULT_TOKEN\" > \"$RUNNER_TEMP/netrc\")\n    \
                     sudo install -D -m 600 \"$RUNNER_TEMP/netrc\" /etc/nix/netrc\n"
                );
                (step, "      netrc-file = /etc/nix/netrc\n".to_owned())
            });
            format!(
                "{}- uses: cachix/install-nix-action@v31\n  with:\n    extra_nix_config: |\n      \
                 extra-substituters = {url}\n      extra-trusted-public-keys = {keys}\n{}",
                netrc.0, netrc.1
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used() -> Used {
        Used {
            url: "https://cache.example.org/main".into(),
            public_keys: vec!["main-1:AA==".into(), "main-2:BB==".into()],
        }
    }

    #[test]
    fn every_format_has_the_address_and_all_keys() {
        for format in Format::value_variants() {
            for host in [None, Some("cache.example.org")] {
                let text = snippet(*format, &used(), host);

                for part in ["https://cache.example.org/main", "main-1:AA==", "main-2:BB=="] {
                    assert!(text.contains(part), "{format:?}: {text}");
                }
                assert_eq!(text.contains("machine cache.example.org"), host.is_some(), "{format:?}: {text}");
                assert!(text.ends_with('\n') && !text.contains("\n\n"), "{format:?}: {text}");
            }
        }
    }

    #[test]
    fn modules_are_whole_nix_expressions() {
        assert_eq!(
            snippet(Format::Nixos, &used(), None),
            "{\n  nix.settings = {\n    substituters = [ \"https://cache.example.org/main\" ];\n    \
             trusted-public-keys = [ \"main-1:AA==\" \"main-2:BB==\" ];\n  };\n}\n"
        );
    }

    #[test]
    fn a_workflow_is_yaml() {
        for host in [None, Some("cache.example.org")] {
            let text = snippet(Format::GithubActions, &used(), host);

            let steps: yaml_serde::Value = yaml_serde::from_str(&text).unwrap();

            let steps = steps.as_sequence().unwrap();
            let config = steps.last().unwrap()["with"]["extra_nix_config"].as_str().unwrap();
            assert!(config.starts_with("extra-substituters = https://cache.example.org/main\n"), "{config}");
            assert_eq!(steps.len(), if host.is_some() { 2 } else { 1 });
        }
    }
}
