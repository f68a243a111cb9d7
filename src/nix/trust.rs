//! Texts that make Nix trust a cache: lines of nix.conf, a NixOS module, a flake's `nixConfig`.
//!
//! Never holds a token: `netrc` is what a private cache's text says about where one goes.

/// A cache as a client is to trust it.
#[derive(Debug, Clone, Copy)]
pub struct Trusted<'a> {
    /// For `substituters`.
    pub url: &'a str,
    /// `name:base64`, for `trusted-public-keys`.
    pub public_keys: &'a [String],
    /// The line that a private cache's netrc file holds.
    pub netrc: Option<&'a str>,
}

impl Trusted<'_> {
    /// Lines for nix.conf.
    pub fn nix_conf(&self) -> String {
        let netrc = self.netrc.map_or(String::new(), |line| {
            format!(
                "# The cache is private. A file of mode 0600 holds: {line}\nnetrc-file = /etc/nix/netrc\n"
            )
        });
        let (url, keys) = (self.url, self.public_keys.join(" "));
        format!("extra-substituters = {url}\nextra-trusted-public-keys = {keys}\n{netrc}")
    }

    /// A NixOS module.
    pub fn nixos(&self) -> String {
        let netrc = self.netrc.map_or(String::new(), |line| {
            format!(
                "    # The cache is private. A file that is not in the store holds: {line}\n    \
                 netrc-file = \"/etc/nix/netrc\";\n"
            )
        });
        let (url, keys) = (self.url, self.quoted_keys());
        format!(
            "{{\n  nix.settings = {{\n    substituters = [ \"{url}\" ];\n    trusted-public-keys = [ {keys} ];\n{netrc}  }};\n}}\n"
        )
    }

    /// A flake's `nixConfig`.
    pub fn flake(&self) -> String {
        let netrc = self.netrc.map_or(String::new(), |line| {
            format!("    # The cache is private. Each user's netrc file holds: {line}\n")
        });
        let (url, keys) = (self.url, self.quoted_keys());
        format!(
            "{{\n  # Users are asked whether they trust this, unless they are in `trusted-users`.\n  nixConfig = {{\n    \
             extra-substituters = [ \"{url}\" ];\n    extra-trusted-public-keys = [ {keys} ];\n{netrc}  }};\n}}\n"
        )
    }

    /// The keys as elements of a list in the Nix language.
    pub fn quoted_keys(&self) -> String {
        self.public_keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_the_address_and_all_keys() {
        let keys = ["main-1:AA==".to_owned(), "main-2:BB==".to_owned()];
        for netrc in [None, Some("machine cache.example.org login narvault password nvt_...")] {
            let trusted = Trusted { url: "https://cache.example.org/main", public_keys: &keys, netrc };
            for text in [trusted.nix_conf(), trusted.nixos(), trusted.flake()] {
                for part in ["https://cache.example.org/main", "main-1:AA==", "main-2:BB=="] {
                    assert!(text.contains(part), "{text}");
                }
                assert_eq!(text.contains("machine cache.example.org"), netrc.is_some(), "{text}");
                assert!(text.ends_with('\n') && !text.contains("\n\n"), "{text}");
            }
        }
    }
}
