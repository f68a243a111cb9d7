//! `docker compose up` from a fresh clone, as far as it can be known without Docker: the file is valid, its
//! parts agree with each other, and every command in it is one that the program takes. Starts no container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The schema that Docker Compose itself checks with: `schema/compose-spec.json` of the Go module
/// `github.com/compose-spec/compose-go/v2`, v2.16.2 (Apache-2.0, Copyright 2020 The Compose Specification Authors).
const SCHEMA: &str = include_str!("fixtures/compose-spec.json");

const SERVICES: [&str; 3] = ["garage", "narvault", "postgres"];

#[test]
fn the_compose_file_is_valid_under_the_published_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");

    let faults: Vec<String> = validator
        .iter_errors(&compose())
        .map(|fault| format!("{}: {fault}", fault.instance_path()))
        .collect();

    assert_eq!(faults, [] as [String; 0]);
    assert_eq!(services().keys().collect::<Vec<_>>(), SERVICES);
}

#[test]
fn the_schema_refuses_what_compose_refuses() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");

    for (pointer, value) in [
        ("/services/narvault", json!({ "imagine": "narvault" })),
        ("/services/narvault/healthcheck", json!({ "test": 7 })),
        ("/services/narvault/depends_on", json!({ "postgres": { "condition": "healthy" } })),
        ("/services/narvault/restart", json!(["always"])),
        ("/volumes", json!(["data"])),
    ] {
        let mut changed = compose();
        *changed.pointer_mut(pointer).expect("the file has such a part") = value;

        assert!(!validator.is_valid(&changed), "{pointer}");
    }
}

#[test]
fn every_narvault_command_line_is_one_that_the_binary_takes() {
    let lines = narvault_command_lines();

    assert!(lines.contains(&vec!["serve".to_owned()]), "{lines:?}");
    for line in &lines {
        let output = Command::new(env!("CARGO_BIN_EXE_narvault")).args(line).arg("--help").output();
        let output = output.expect("the binary was built for this test");

        assert!(output.status.success(), "narvault {line:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_command_lines_of_the_other_programs_are_valid_where_these_are_installed() {
    for (service, line) in command_lines() {
        let (program, arguments) = line.split_first().expect("a command has a program");
        let program = program.trim_start_matches('/');
        // pg_isready knows `--help` only alone; 3 is its exit code for arguments that it does not take.
        let (extra, refused): (&[&str], &[i32]) = match program {
            "garage" => (&["--help"], &[1, 2]),
            "pg_isready" => (&[], &[3]),
            "narvault" => continue,
            _ => panic!("{service} runs {program}, of which this test knows nothing"),
        };
        let status = Command::new(program).args(arguments).args(extra).stdout(Stdio::null()).status();
        let Ok(status) = status else { continue };

        let code = status.code().unwrap_or(-1);
        assert!(!refused.contains(&code), "{service}: {line:?} was refused with {code}");
    }
}

#[test]
fn only_narvault_is_reachable_and_only_from_this_machine() {
    let published = |service: &Value| strings(&service["ports"]);

    for port in published(&services()["narvault"]) {
        assert!(port.starts_with("127.0.0.1:"), "{port}");
    }
    for name in ["postgres", "garage"] {
        assert_eq!(published(&services()[name]), [] as [String; 0], "{name}");
        for network in strings(&services()[name]["networks"]) {
            assert_eq!(compose()["networks"][&network]["internal"], json!(true), "{name} on {network}");
        }
    }
}

#[test]
fn the_key_of_the_vault_has_a_volume_of_its_own() {
    let services = services();
    let key_file = environment("narvault")["NARVAULT_VAULT_KEY_FILE"].clone();
    let data = environment("narvault")["NARVAULT_DATA"].clone();
    let mounts = |service: &Value| -> Vec<(String, String)> {
        let volumes = strings(&service["volumes"]);
        let split =
            |volume: &String| volume.split_once(':').map(|(name, at)| (name.to_owned(), at.to_owned()));
        volumes.iter().filter_map(split).collect()
    };

    let narvault = mounts(&services["narvault"]);
    let (volume, at) = narvault
        .iter()
        .find(|(_, at)| Path::new(&key_file).starts_with(at))
        .expect("the key file is in a volume");

    assert!(!Path::new(&data).starts_with(at) && !Path::new(at).starts_with(&data), "{at} and {data}");
    for name in ["postgres", "garage"] {
        assert!(!mounts(&services[name]).iter().any(|(other, _)| other == volume), "{name} mounts {volume}");
    }
}

#[test]
fn a_variable_has_the_same_default_wherever_it_stands() {
    let mut defaults: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for part in read("docker-compose.yml").split("${").skip(1) {
        let inside = part.split('}').next().unwrap_or_default();
        let (name, default) = inside.split_once(":-").unwrap_or((inside, "(none)"));
        defaults.entry(name.to_owned()).or_default().insert(default.to_owned());
    }

    for (name, defaults) in &defaults {
        assert_eq!(defaults.len(), 1, "{name} has the defaults {defaults:?}");
    }
    assert!(defaults.contains_key("GARAGE_SECRET_KEY"), "{defaults:?}");
}

#[test]
fn the_storage_url_is_what_garage_offers() {
    let garage: toml::Value = toml::from_str(&read("deploy/garage.toml")).expect("the file is TOML");
    let storage = environment("narvault")["NARVAULT_STORAGE_URL"].clone();
    let storage = url::Url::parse(&storage).expect("the storage URL is a URL");
    let query: BTreeMap<_, _> = storage.query_pairs().into_owned().collect();
    let endpoint = url::Url::parse(&query["endpoint"]).expect("the endpoint is a URL");

    let address = garage["s3_api"]["api_bind_addr"].as_str().expect("an address is a string");
    assert_eq!(endpoint.host_str(), Some("garage"));
    assert_eq!(endpoint.port().map(|port| format!("0.0.0.0:{port}")).as_deref(), Some(address));
    assert_eq!(Some(query["region"].as_str()), garage["s3_api"]["s3_region"].as_str());
    assert_eq!(storage.host_str(), Some(environment("garage")["GARAGE_DEFAULT_BUCKET"].as_str()));
}

#[test]
fn a_read_only_service_takes_its_configuration_from_files() {
    // Compose writes a config with `content` into the container and refuses to where that is read-only.
    for (name, service) in services() {
        let configs = service["configs"].as_array().cloned().unwrap_or_default();
        let sources = configs.iter().filter_map(|config| config["source"].as_str());
        for source in sources.filter(|_| service["read_only"] == json!(true)) {
            assert!(
                compose()["configs"][source]["file"].is_string(),
                "{name} is read_only, {source} has no file"
            );
        }
    }
}

#[test]
fn every_service_says_when_it_is_well_and_narvault_waits_for_that() {
    for (name, service) in services() {
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        if name != "narvault" {
            let condition = &services()["narvault"]["depends_on"][&name]["condition"];
            assert_eq!(condition, &json!("service_healthy"), "{name}");
        }
    }
}

#[test]
fn every_image_is_named_with_its_version() {
    let dockerfile = read("Dockerfile");
    let from = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM "));
    let from = from.filter_map(|line| line.split(' ').next()).map(str::to_owned);
    let services = services();
    let images = services.values().filter(|service| service["build"].is_null());
    let images = images.map(|service| service["image"].as_str().unwrap_or_default().to_owned());

    for image in from.chain(images) {
        let (name, tag) = image.split_once(':').unwrap_or((&image, ""));
        let versioned = name.contains("debian12") || tag.chars().any(|character| character.is_ascii_digit());
        assert!(versioned && tag != "latest" && !tag.is_empty(), "{image}");
    }
}

#[test]
fn the_image_is_built_with_the_rust_that_the_package_asks_for() {
    let package: toml::Value = toml::from_str(&read("Cargo.toml")).expect("the manifest is TOML");
    let version = package["package"]["rust-version"].as_str().expect("a version is a string");

    assert!(
        read("Dockerfile").contains(&format!("FROM rust:{version}-")),
        "Dockerfile is not for Rust {version}"
    );
}

#[test]
fn the_image_gets_every_file_that_is_compiled_in() {
    let ignored = read(".dockerignore");
    let kept: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);

    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is a text");
        for (position, _) in text.match_indices("include_") {
            let call =
                text[position..].split_once("!(\"").filter(|(name, _)| !name.contains(char::is_whitespace));
            let Some((target, _)) = call.and_then(|(_, rest)| rest.split_once('"')) else { continue };
            let target = normal(&file.parent().expect("a file is in a folder").join(target));
            let target = target.strip_prefix(root()).expect("within the repository").to_path_buf();

            let is_kept = kept.iter().any(|kept| target.starts_with(kept));
            assert!(
                is_kept,
                "{} includes {}, which .dockerignore leaves out",
                file.display(),
                target.display()
            );
        }
    }
    for folder in ["migrations", "src", "Cargo.lock"] {
        assert!(kept.contains(&folder), ".dockerignore leaves out {folder}");
    }
}

/// What follows `narvault` on each command line of the compose file and the Dockerfile.
pub fn narvault_command_lines() -> Vec<Vec<String>> {
    let of_compose = command_lines().into_iter().map(|(_, line)| line);
    let of_narvault = of_compose.chain(dockerfile_command_lines()).filter(|line| line[0] == "narvault");
    let arguments: BTreeSet<Vec<String>> = of_narvault.map(|line| line[1..].to_vec()).collect();
    arguments.into_iter().collect()
}

/// Every command and health check of the compose file, with its service.
fn command_lines() -> Vec<(String, Vec<String>)> {
    let mut lines = Vec::new();
    for (name, service) in services() {
        let mut command = strings(&service["command"]);
        // Our image has an entry point.
        if name == "narvault" {
            command.insert(0, "narvault".to_owned());
        }
        let check = strings(&service["healthcheck"]["test"]);
        let (how, check) = check.split_first().expect("every service has a health check");
        assert_eq!(how, "CMD", "{name}: a health check without a shell");
        lines.extend(
            [command, check.to_vec()]
                .into_iter()
                .filter(|line| !line.is_empty())
                .map(|line| (name.clone(), line)),
        );
    }
    lines
}

fn dockerfile_command_lines() -> Vec<Vec<String>> {
    let text = read("Dockerfile");
    let array_of = |line: &str| -> Vec<String> {
        let array = line.find('[').map_or("[]", |start| &line[start..]);
        serde_json::from_str(array).unwrap_or_else(|error| panic!("Dockerfile: {line}: {error}"))
    };
    let starting =
        |word: &str| text.lines().find(|line| line.starts_with(word)).map(array_of).unwrap_or_default();

    let mut whole = starting("ENTRYPOINT ");
    whole.extend(starting("CMD "));
    vec![whole, starting("HEALTHCHECK ")]
}

/// The environment that a service is given, with the defaults of its variables.
fn environment(service: &str) -> BTreeMap<String, String> {
    let services = services();
    let variables = services[service]["environment"].as_object().expect("an environment is a mapping");
    let text = |value: &Value| with_defaults(value.as_str().expect("quoted: a variable is a text"));
    variables.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// `${NAME:-default}` as Compose reads it where NAME is not set.
fn with_defaults(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (variable, after) = rest.split_once('}').expect("what opens closes");
    let default = variable.split_once(":-").map(|(_, default)| default).unwrap_or_default();
    format!("{before}{default}{}", with_defaults(after))
}

fn compose() -> Value {
    yaml_serde::from_str(&read("docker-compose.yml")).expect("the compose file is YAML")
}

fn services() -> BTreeMap<String, Value> {
    let compose = compose();
    let services = compose["services"].as_object().expect("a compose file has services");
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

fn strings(value: &Value) -> Vec<String> {
    let values = value.as_array().cloned().unwrap_or_default();
    values.iter().map(|value| value.as_str().expect("a list of strings").to_owned()).collect()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("listed by the line above").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Without `..`, which need not exist to be resolved.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normal.pop(),
            component => normal.push(component),
        }
    }
    normal
}
