//! What the demo pushes: small packages made here, with references as real ones have, and in two forms: as a NAR,
//! and as the file that `nix-store --import` takes.
//!
//! Their paths are no content addresses, so that Nix has to see a signature before it takes one.
//! Export format: `nix:src/libstore/export-import.cc`.

use std::collections::BTreeSet;

use crate::nix::base32;
use crate::nix::claim::Claim;
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::nix::nar::build::Node;
use crate::nix::nar::encode::write_token;
use crate::nix::store_path::{ParseStorePathError, StorePath};

/// A store path with its content.
pub struct Package {
    pub path: StorePath,
    pub nar: Vec<u8>,
    pub references: Vec<StorePath>,
}

/// The packages of the story.
pub struct Packages {
    /// A text that `hello` reads.
    pub greeting: Package,
    pub hello: Package,
    /// The same path as `hello`, and another content: a build that cannot be reproduced, or worse.
    pub other_hello: Package,
    /// One that is pushed last.
    pub late: Package,
}

impl Packages {
    /// Makes them. `seed` makes their paths differ from run to run, as those of real builds do.
    pub fn make(seed: &str) -> Result<Self, ParseStorePathError> {
        let greeting_tree = [("share", Node::directory([("greeting", Node::file(GREETING))]))];
        let greeting = Package {
            path: store_path(seed, "greeting-1.0")?,
            nar: Node::directory(greeting_tree).to_nar(),
            references: Vec::new(),
        };
        let hello_path = store_path(seed, "hello-1.0")?;
        let hello = |remark: &str| {
            let script = format!("#!/bin/sh\n{remark}exec cat {}/share/greeting\n", greeting.path);
            let tree = [("bin", Node::directory([("hello", Node::executable(script))]))];
            Package {
                path: hello_path.clone(),
                nar: Node::directory(tree).to_nar(),
                references: vec![greeting.path.clone()],
            }
        };
        Ok(Self {
            hello: hello(""),
            other_hello: hello("# not what was built before\n"),
            late: Package {
                path: store_path(seed, "late-1.0")?,
                nar: Node::file("too late\n").to_nar(),
                references: Vec::new(),
            },
            greeting,
        })
    }
}

impl Package {
    /// What Nix would sign for it.
    pub fn claim(&self) -> Claim {
        Claim {
            path: self.path.clone(),
            nar_hash: NarHash(Sha256Digest::of(&self.nar)),
            nar_size: self.nar.len() as u64,
            references: self.references.iter().cloned().collect::<BTreeSet<_>>(),
        }
    }
}

/// The file that `nix-store --import` takes, references first.
pub fn export(packages: &[&Package]) -> Vec<u8> {
    let mut file = Vec::new();
    for package in packages {
        write_number(&mut file, 1);
        file.extend_from_slice(&package.nar);
        write_number(&mut file, EXPORT_MAGIC);
        write_token(&mut file, package.path.to_string().as_bytes());
        write_number(&mut file, package.references.len() as u64);
        for reference in &package.references {
            write_token(&mut file, reference.to_string().as_bytes());
        }
        // No deriver, and no signature of the kind that was here once.
        write_token(&mut file, b"");
        write_number(&mut file, 0);
    }
    write_number(&mut file, 0);
    file
}

fn write_number(file: &mut Vec<u8>, number: u64) {
    file.extend_from_slice(&number.to_le_bytes());
}

/// A path with a hash of its own; what Nix hashes there, a derivation, does not exist here.
fn store_path(seed: &str, name: &str) -> Result<StorePath, ParseStorePathError> {
    let digest = Sha256Digest::of(format!("narvault demo {seed} {name}").as_bytes());
    StorePath::from_base_name(&format!("{}-{name}", base32::encode(&digest.0[..20])))
}

const EXPORT_MAGIC: u64 = 0x4558_494e;

const GREETING: &str = "Hello from a binary cache that knows who pushed what.\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::nar::{Checker, NarLimits};

    #[test]
    fn every_package_is_a_canonical_nar_and_holds_its_references() {
        let packages = Packages::make("seed").unwrap();

        for package in [&packages.greeting, &packages.hello, &packages.other_hello, &packages.late] {
            let mut checker = Checker::new(NarLimits::default());
            checker.push(&package.nar).unwrap();
            checker.finish().unwrap();
            for reference in &package.references {
                let hash = reference.hash();
                assert!(package.nar.windows(32).any(|window| window == hash.as_str().as_bytes()));
            }
        }
        assert_eq!(packages.hello.path, packages.other_hello.path);
        assert_ne!(packages.hello.nar, packages.other_hello.nar);
    }
}
