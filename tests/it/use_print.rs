//! What `narvault use --print` prints is a configuration: the real Nix evaluates it as the module, the flake or the file that
//! it is to be, and reads the cache, its keys and its netrc file out of it, and nothing else.

use narvault::api::KeyCreate;
use serde_json::{Value, json};

use crate::support::desk::Desk;
use crate::support::nix::{Nix, Ran};
use crate::support::server::{Backend, TestServer};

const USER_CONF: &str = "home/.config/nix/nix.conf";

/// As NixOS and home-manager make a nix.conf of `nix.settings`: a name and its value in each line, lists as words.
const RENDER: &str = r#"
    settings: let
      text = value:
        if builtins.isList value then builtins.concatStringsSep " " (map text value)
        else if builtins.isBool value then (if value then "true" else "false")
        else toString value;
      line = name: "${name} = ${text settings.${name}}\n";
    in builtins.concatStringsSep "" (map line (builtins.attrNames settings))
"#;

/// What is at the desk: a Nix, and a login for the private cache `team`, which has two keys, as `main` has.
struct Printing<'a> {
    server: &'a TestServer,
    desk: Desk,
    public_keys: Vec<String>,
    cache: &'static str,
}

impl<'a> Printing<'a> {
    async fn new(server: &'a TestServer, nix: &Nix, cache: &'static str) -> Self {
        let mut desk = Desk::new(nix);
        let token = server.token("bob", &["pull:team", "pull:main"]).await.text;
        desk.set("NARVAULT_URL", &server.url);
        desk.set("NARVAULT_TOKEN", &token);
        let public_keys = server.admin().cache(cache).await.unwrap().public_keys;
        assert_eq!(public_keys.len(), 2);
        Self { server, desk, public_keys, cache }
    }

    fn told(&self) -> String {
        format!("{}, Nix {}", self.cache, self.desk.nix.version)
    }

    async fn printed(&self, format: &str) -> String {
        let text = self.desk.narvault_ok(&["use", self.cache, "--print", format]).await;
        assert!(!text.contains("password nvt_") || text.contains("password nvt_..."), "{text}");
        text
    }

    /// The value of an expression, in which `./printed.nix` is what was printed.
    async fn evaluated(&self, text: &str, expression: &str) -> Value {
        self.desk.write("home/printed.nix", text);
        let arguments = ["--eval", "--strict", "--json", "--expr", expression];
        let ran = self.desk.run("nix-instantiate", &arguments).await;
        let ran = Ran { stderr: format!("{}\n{text}", ran.stderr), ..ran }.success();
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Nix reads these lines, and its configuration is then as it was, but for the cache.
    async fn assert_read(&self, conf: &str, adds: bool, netrc_file: Option<String>) {
        std::fs::create_dir_all(self.desk.file("home/.config/nix")).unwrap();
        self.desk.write(USER_CONF, "");
        let mut expected = self.desk.effective().await;
        self.desk.write(USER_CONF, conf);

        let effective = self.desk.effective().await;

        let url = json!(self.server.pull_url(self.cache));
        let mut set = |name: &str, values: Vec<Value>| {
            let list = expected[name]["value"].as_array_mut().unwrap();
            if !adds {
                list.clear();
            }
            list.extend(values);
        };
        set("substituters", vec![url]);
        set("trusted-public-keys", self.public_keys.iter().map(|key| json!(key)).collect());
        if let Some(file) = netrc_file {
            expected["netrc-file"]["value"] = json!(file);
        }
        let values = |settings: &Value| -> Vec<(String, Value)> {
            let settings = settings.as_object().unwrap().iter();
            settings.map(|(name, setting)| (name.clone(), setting["value"].clone())).collect()
        };
        assert_eq!(values(&effective), values(&expected), "{}\n{conf}", self.told());
    }

    fn netrc_file(&self, file: &str) -> Option<String> {
        (self.cache == "team").then(|| file.to_owned())
    }
}

async fn with_each_cache(promise: impl AsyncFn(&Printing<'_>)) {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let body = serde_json::from_value(json!({ "name": "team", "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    for cache in ["main", "team", "team"] {
        server.admin().key_create(cache, &KeyCreate::default()).await.unwrap();
    }
    for nix in Nix::generations().await {
        for cache in ["main", "team"] {
            promise(&Printing::new(&server, &nix, cache).await).await;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nixos_module_makes_a_nix_conf_with_the_cache() {
    with_each_cache(async |printing| {
        let text = printing.printed("nixos").await;
        let module = printing.evaluated(&text, "import ./printed.nix").await;
        let names: Vec<&String> = module.as_object().unwrap().keys().collect();
        assert_eq!(names, ["nix"], "{text}");

        let expression = format!("({RENDER}) (import ./printed.nix).nix.settings");
        let conf = printing.evaluated(&text, &expression).await;

        // The module system puts lists of several modules together, so these are not the whole ones there.
        printing.assert_read(conf.as_str().unwrap(), false, printing.netrc_file("/etc/nix/netrc")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_manager_module_makes_a_nix_conf_with_the_cache_and_the_users_netrc_file() {
    with_each_cache(async |printing| {
        let text = printing.printed("home-manager").await;
        let module = "(import ./printed.nix { pkgs.nix = \"the package\"; config.home.homeDirectory = \"/home/bob\"; })";
        let package = printing.evaluated(&text, &format!("{module}.nix.package")).await;

        let conf = printing.evaluated(&text, &format!("({RENDER}) {module}.nix.settings")).await;

        assert_eq!(package, json!("the package"), "home-manager refuses settings without it");
        let netrc = printing.netrc_file("/home/bob/.config/nix/netrc");
        printing.assert_read(conf.as_str().unwrap(), true, netrc).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flakes_settings_are_taken_by_nix_from_the_flake_itself() {
    with_each_cache(async |printing| {
        let text = printing.printed("flake").await;
        let flake = printing.evaluated(&text, "import ./printed.nix").await;
        let names: Vec<&String> = flake.as_object().unwrap().keys().collect();
        assert_eq!(names, ["nixConfig"], "{text}");
        let conf = printing.evaluated(&text, &format!("({RENDER}) (import ./printed.nix).nixConfig")).await;
        printing.assert_read(conf.as_str().unwrap(), true, None).await;

        // In a flake that is one, Nix takes them from whoever is trusted, and asks others.
        let closing = text.trim_end().strip_suffix('}').unwrap();
        let whole = format!("{closing}  outputs = _: {{ answer = \"42\"; }};\n}}\n");
        printing.desk.write("home/flake/flake.nix", &whole);
        let flake = format!("path:{}#answer", printing.desk.file("home/flake").display());
        let features = ["--extra-experimental-features", "nix-command flakes"];
        let evaluate = [&["eval"], &features[..], &["--raw", "--accept-flake-config", &flake]].concat();
        let evaluated = printing.desk.run("nix", &evaluate).await.success();
        assert_eq!(evaluated.stdout, "42");
        assert!(!evaluated.stderr.contains("unknown setting"), "{}", evaluated.stderr);
        assert!(!evaluated.stderr.contains("untrusted"), "{}", evaluated.stderr);
        let refused = [&["eval"], &features[..], &["--raw", &flake]].concat();
        let refused = printing.desk.run("nix", &refused).await;
        assert!(refused.stderr.contains("extra-substituters"), "Nix asks, or says no: {}", refused.stderr);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lines_for_nix_conf_and_for_a_workflow_are_read_by_nix() {
    with_each_cache(async |printing| {
        let conf = printing.printed("nix-conf").await;
        let workflow = printing.printed("github-actions").await;

        printing.assert_read(&conf, true, printing.netrc_file("/etc/nix/netrc")).await;

        let steps: yaml_serde::Value = yaml_serde::from_str(&workflow).unwrap();
        let steps = steps.as_sequence().unwrap();
        let action = steps.last().unwrap();
        assert!(action["uses"].as_str().unwrap().starts_with("cachix/install-nix-action@"), "{workflow}");
        let conf = action["with"]["extra_nix_config"].as_str().unwrap();
        printing.assert_read(conf, true, printing.netrc_file("/etc/nix/netrc")).await;
        // The step before it writes that file, by the shell, from the secret.
        if printing.cache == "team" {
            let script = steps[0]["run"].as_str().unwrap();
            let home = printing.desk.file("home").display().to_string();
            let script = script.replace("sudo ", "").replace("/etc/nix/netrc", &format!("{home}/nix/netrc"));
            let mut shell = tokio::process::Command::new("bash");
            shell.args(["-ec", &script]).env("RUNNER_TEMP", &home).env("NARVAULT_TOKEN", "the-secret");
            assert!(shell.status().await.unwrap().success(), "{script}");
            let netrc = printing.desk.read("home/nix/netrc").unwrap();
            assert_eq!(netrc, "machine 127.0.0.1 login narvault password the-secret\n");
        }
    })
    .await;
}
