//! What is malformed is refused with a sentence that names the fault, is to be seen nowhere, and harms nothing.

use std::path::Path;

use bytes::Bytes;
use data_encoding::BASE64;
use narvault::api::{PathQuery, UnsealRequest};
use narvault::nix::hash::Sha256Digest;
use narvault::nix::nar::build::Node;
use reqwest::Method;
use reqwest::header::HeaderName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::client::{Answer, Http, TestPath, Token, lines};
use crate::support::server::{Backend, TestServer};
use crate::support::{PATIENCE, no_temporary_file};

async fn server() -> TestServer {
    TestServer::start(Backend::SQLITE_DISK).await.unwrap()
}

/// Every object of a cache in the storage folder, but for what the server writes by itself.
async fn objects(server: &TestServer) -> Vec<String> {
    let storage = server.site.data().join("storage");
    no_temporary_file(&storage).await;
    let mut found = Vec::new();
    visit(&storage, &mut found);
    let own = ["/nix-cache-info", "/_narvault/cluster", "/_narvault/tmp/", "/_log/"];
    found.retain(|name| !own.iter().any(|own| name.contains(own)));
    found
}

fn visit(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { visit(&path, found) } else { found.push(path.to_string_lossy().into_owned()) }
    }
}

/// Nothing came of what was refused, and a good push goes on as if nothing had been.
async fn nothing_happened(server: &TestServer, pusher: &Http) {
    assert_eq!(objects(server).await, [""; 0]);
    assert!(server.admin().paths("main", &PathQuery::default()).await.unwrap().items.is_empty());
    let good = TestPath::new("good", "after all the bad ones");
    pusher.push("main", &good).await;
    server.http().get(&format!("/main/{}.narinfo", good.hash())).await.assert_status(200);
}

/// A NAR of these tokens, right or not.
fn nar<'a>(tokens: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut nar = Vec::new();
    for token in std::iter::once(&b"nix-archive-1"[..]).chain(tokens) {
        nar.extend_from_slice(&(token.len() as u64).to_le_bytes());
        nar.extend_from_slice(token);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

/// A NAR of the words of a text.
fn words(text: &str) -> Vec<u8> {
    nar(text.split(' ').map(str::as_bytes))
}

/// A folder of empty files with these names.
fn folder(names: &[&[u8]]) -> Vec<u8> {
    let mut tokens: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for name in names {
        tokens.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        tokens.extend([&b"("[..], b"type", b"regular", b"contents", b"", b")", b")"]);
    }
    tokens.push(b")");
    nar(tokens)
}

fn symlink(target: &[u8]) -> Vec<u8> {
    nar([&b"("[..], b"type", b"symlink", b"target", target, b")"])
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 1);
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Not compressible: cutting it cuts the archive.
fn noise() -> Vec<u8> {
    let pieces = (0..2000_u32).flat_map(|n| Sha256Digest::of(&n.to_le_bytes()).base32().into_bytes());
    Node::file(pieces.collect::<Vec<u8>>()).to_nar()
}

fn without_end(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() - 20].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_nar_is_refused_and_to_be_seen_nowhere() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let good = Node::file("x").to_nar();
    let mut padded = good.clone();
    let x = padded.iter().rposition(|&byte| byte == b'x').unwrap();
    padded[x + 7] = 1;
    let deep = (0..64).fold(Node::file("x"), |inner, _| Node::directory([("d", inner)])).to_nar();
    let mut endless = words("( type regular contents");
    endless.extend_from_slice(&u64::MAX.to_le_bytes());
    let mut long_word = words("( type");
    long_word.extend_from_slice(&(1_u64 << 40).to_le_bytes());
    let zstd = zstd::encode_all(&noise()[..], 1).unwrap();
    let damaged = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 16].fill(0xaa);
        bytes
    };
    let followed = |bytes: &[u8]| [bytes, b"and something after its end"].concat();
    #[rustfmt::skip]
    let table: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        ("nothing", "nar", Vec::new(), 422, "the uploaded file is empty"),
        ("a text", "nar", b"hello".to_vec(), 422, "neither a plain NAR nor gzip"),
        ("another version", "nar", nar([])[..8].iter().copied().chain(*b"nix-archive-2\0\0\0").collect(), 422, "neither a plain NAR nor gzip"),
        ("the magic alone", "nar", nar([]), 422, "it ends too early"),
        ("no parenthesis", "nar", words("type regular contents x )"), 422, "is missing"),
        ("no type", "nar", words("( regular contents x )"), 422, "is missing"),
        ("a socket", "nar", words("( type socket )"), 422, "the type is none of"),
        ("no contents", "nar", words("( type regular )"), 422, "is missing"),
        ("executable: yes", "nar", words("( type regular executable yes contents x )"), 422, "the value of `executable` is not empty"),
        ("a file with a target", "nar", words("( type regular target x )"), 422, "is missing"),
        ("a link with contents", "nar", words("( type symlink contents x )"), 422, "is missing"),
        ("a long word", "nar", long_word, 422, "the type is none of"),
        ("an empty name", "nar", folder(&[b""]), 422, "a name is empty or longer than 255 bytes"),
        ("a long name", "nar", folder(&[&[b'n'; 256]]), 422, "a name is empty or longer than 255 bytes"),
        (".", "nar", folder(&[b"."]), 422, "a name is `.` or `..`"),
        ("..", "nar", folder(&[b".."]), 422, "a name is `.` or `..`"),
        ("a slash", "nar", folder(&[b"a/b"]), 422, "a name contains `/` or NUL"),
        ("a way out", "nar", folder(&[b"../../etc/passwd"]), 422, "a name contains `/` or NUL"),
        ("a NUL", "nar", folder(&[b"a\0b"]), 422, "a name contains `/` or NUL"),
        ("twice", "nar", folder(&[b"a", b"a"]), 422, "a name occurs twice"),
        ("unsorted", "nar", folder(&[b"b", b"a"]), 422, "not sorted"),
        ("no target", "nar", symlink(b""), 422, "the target of a symbolic link is empty or longer"),
        ("a long target", "nar", symlink(&[b't'; 4096]), 422, "the target of a symbolic link is empty or longer"),
        ("a NUL in a target", "nar", symlink(b"a\0b"), 422, "the target of a symbolic link contains NUL"),
        ("padding", "nar", padded, 422, "padding is not zero"),
        ("depth", "nar", deep, 422, "nested deeper than 64"),
        ("a tail", "nar", followed(&good), 422, "data follows after its end"),
        ("two archives", "nar", good.repeat(2), 422, "data follows after its end"),
        ("cut", "nar", without_end(&good), 422, "it ends too early"),
        ("an endless file", "nar", endless, 413, "is larger than"),
        ("xz under a plain name", "nar", xz(&good), 422, "file name says one compression and the bytes another"),
        ("plain under xz", "nar.xz", good.clone(), 422, "file name says one compression and the bytes another"),
        ("zstd under xz", "nar.xz", zstd.clone(), 422, "file name says one compression and the bytes another"),
        ("lzip", "nar", b"LZIP\x01 and so on, but not a NAR".to_vec(), 422, "compression not accepted; use xz"),
        ("xz of a text", "nar.xz", xz(b"hello"), 422, "not a canonical NAR"),
        ("cut xz", "nar.xz", without_end(&xz(&noise())), 422, "the xz data is cut short"),
        ("cut zstd", "nar.zst", without_end(&zstd), 422, "the zstd data is cut short"),
        ("damaged xz", "nar.xz", damaged(xz(&noise())), 422, "damaged"),
        ("xz with a tail", "nar.xz", followed(&xz(&good)), 422, "the xz data is damaged"),
        ("zstd with a tail", "nar.zst", followed(&zstd), 422, "after the end of its NAR"),
    ];

    for (what, extension, body, status, text) in table {
        println!("{what}");
        let file = format!("nar/{}.{extension}", Sha256Digest::of(&body).base32());
        alice.put(&format!("/push/main/{file}"), body).await.assert_refused(status, text);
        alice.get(&format!("/push/main/{file}")).await.assert_refused(404, "no such object");
        server.http().get(&format!("/main/{file}")).await.assert_refused(404, "no such object");
    }

    let misnamed = TestPath::new("good", "after all the bad ones");
    let other = format!("/push/main/nar/{}.nar", Sha256Digest::of(b"another").base32());
    alice.put(&other, misnamed.file.clone()).await.assert_refused(422, "the file's SHA-256 is");
    nothing_happened(&server, &alice).await;
    server.stop().await;
}

/// A narinfo with the line of `key` replaced, or added; without it where `value` is nothing.
fn with(narinfo: &str, key: &str, value: Option<&str>) -> String {
    let others = narinfo.lines().filter(|line| !line.starts_with(&format!("{key}: ")));
    let mut text: String = others.map(|line| format!("{line}\n")).collect();
    if let Some(value) = value {
        text.push_str(&format!("{key}: {value}\n"));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_or_untrue_narinfo_is_refused_and_publishes_nothing() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");
    let missing = TestPath::new("never-pushed", "x");
    alice.put_nar("main", &path).await.assert_status(201);
    let good = path.narinfo();
    let (store_path, hash) = (path.store_path.as_str(), path.hash());
    let size = path.file.len();
    let nar_hash = lines(&good, "NarHash")[0].to_owned();
    let other_hash = format!("sha256:{}", Sha256Digest::of(b"another").base32());
    let with = |key, value: &str| self::with(&good, key, Some(value)).into_bytes();
    let without = |key| self::with(&good, key, None).into_bytes();
    let twice = |key: &str| format!("{good}{key}: {}\n", lines(&good, key)[0]).into_bytes();
    let sig = |bytes: &[u8]| with("Sig", &format!("key-1:{}", BASE64.encode(bytes)));
    let crowd = format!("Sig: key-1:{}\n", BASE64.encode(&[1; 64]));
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("nothing", Vec::new(), 422, "does not end in a line feed"),
        ("no last line feed", good.trim_end().into(), 422, "does not end in a line feed"),
        ("not UTF-8", [good.as_bytes(), b"Deriver: \xff\n"].concat(), 422, "narinfo is not UTF-8"),
        ("carriage returns", good.replace('\n', "\r\n").into(), 422, "line 1 ends in a carriage return"),
        ("no colon", format!("{good}hello\n").into(), 422, "is not `Key: value`"),
        ("no space", good.replace("StorePath: ", "StorePath:").into(), 422, "line 1 is not `Key: value`"),
        ("two spaces", good.replace("StorePath: ", "StorePath:  ").into(), 422, "line 1 is not `Key: value`"),
        ("an empty line", good.replacen('\n', "\n\n", 1).into(), 422, "line 2 is not `Key: value`"),
        ("too large", format!("{good}X: {}\n", "x".repeat(1 << 20)).into(), 413, "the narinfo is larger than"),
        ("no StorePath", without("StorePath"), 422, "narinfo has no `StorePath`"),
        ("two StorePaths", twice("StorePath"), 422, "narinfo has `StorePath` twice"),
        ("another store", with("StorePath", &store_path.replace("/nix", "/gnu")), 422, "does not begin with `/nix/store/`"),
        ("a short hash", with("StorePath", "/nix/store/abc-thing"), 422, "hash is not 32 characters"),
        ("a bad name", with("StorePath", &format!("/nix/store/{hash}-th/ng")), 422, "name has a character outside"),
        ("a way out", with("StorePath", "/nix/store/../../etc/passwd"), 422, "narinfo's `StorePath` is refused"),
        ("a dot name", with("StorePath", &format!("/nix/store/{hash}-..")), 422, "name is `.` or `..`"),
        ("another hash", with("StorePath", &missing.store_path), 422, "was put under the hash"),
        ("no URL", without("URL"), 422, "narinfo has no `URL`"),
        ("a foreign URL", with("URL", "https://example.org/x.nar"), 422, "`URL` does not begin with `nar/`"),
        ("a URL out of the cache", with("URL", "../other/nar/x.nar"), 422, "`URL` does not begin with `nar/`"),
        ("a URL around", with("URL", "nar/../nix-cache-info"), 422, "narinfo's `URL` is refused"),
        ("a NAR that is not here", missing.narinfo().replace(&missing.store_path, store_path).into(), 422, "was not uploaded to this cache"),
        ("lzip", with("Compression", "lzip"), 422, "compression not accepted; use xz"),
        ("xz of a plain name", with("Compression", "xz"), 422, "`Compression` is not that of its `URL`"),
        ("gzip that is none", with("Compression", "gzip"), 422, "narinfo's Compression is gzip, but the uploaded NAR's is none"),
        ("another FileHash", with("FileHash", &other_hash), 422, "`FileHash` is not that of its `URL`"),
        ("MD5", with("FileHash", "md5:d41d8cd98f00b204e9800998ecf8427e"), 422, "`FileHash` is refused"),
        ("no size", with("FileSize", "0"), 422, "`FileSize` is not a decimal number"),
        ("a negative size", with("FileSize", "-1"), 422, "`FileSize` is not a decimal number"),
        ("another FileSize", with("FileSize", &(size + 1).to_string()), 422, "narinfo's FileSize is"),
        ("no NarHash", without("NarHash"), 422, "narinfo has no `NarHash`"),
        ("a short NarHash", with("NarHash", "sha256:abc"), 422, "`NarHash` is refused"),
        ("another NarHash", with("NarHash", &other_hash), 422, "narinfo's NarHash is"),
        ("no NarSize", without("NarSize"), 422, "narinfo has no `NarSize`"),
        ("two NarSizes", twice("NarSize"), 422, "narinfo has `NarSize` twice"),
        ("a padded NarSize", with("NarSize", &format!("0{size}")), 422, "`NarSize` is not a decimal number"),
        ("a huge NarSize", with("NarSize", "99999999999999999999"), 422, "`NarSize` is not a decimal number"),
        ("another NarSize", with("NarSize", &(size - 1).to_string()), 422, "narinfo's NarSize is"),
        ("absolute references", with("References", store_path), 422, "narinfo's `References` are refused"),
        ("a reference twice", with("References", &format!("{0}-a {0}-a", missing.hash())), 422, "stands twice"),
        ("a reference that is not here", with("References", &missing.store_path["/nix/store/".len()..]), 422, "is not published in this cache; push it first"),
        ("a bad deriver", with("Deriver", "../x.drv"), 422, "narinfo's `Deriver` is refused"),
        ("a signature of nobody", with("Sig", "AAAA"), 422, "signature has no `name:` in front"),
        ("a signature that is no base64", with("Sig", "key-1:&&&&"), 422, "signature is not standard base64"),
        ("a short signature", sig(&[0; 63]), 422, "signature is 63 bytes"),
        ("a crowd of signatures", format!("{good}{}", crowd.repeat(2000)).into(), 422, "`Sig` lines"),
        ("a CA of no method", with("CA", "magic:abc"), 422, "narinfo's `CA` is refused"),
        ("a CA of another content", with("CA", &format!("fixed:r:{other_hash}")), 422, "its hash is another one"),
        ("a CA of another path", with("CA", &format!("fixed:r:{nar_hash}")), 422, "CA does not fit: that content would be"),
    ];

    for (what, body, status, text) in table {
        println!("{what}");
        let narinfo = format!("{hash}.narinfo");
        alice.put(&format!("/push/main/{narinfo}"), body).await.assert_refused(status, text);
        alice.get(&format!("/push/main/{narinfo}")).await.assert_refused(404, "no such object");
        server.http().get(&format!("/main/{narinfo}")).await.assert_refused(404, "no such object");
        server.http().get(&format!("/main/{}", path.nar_url())).await.assert_refused(404, "no such object");
    }

    let objects = objects(&server).await;
    assert!(objects.iter().all(|name| name.ends_with(&path.nar_url())), "{objects:?}");
    assert!(server.admin().paths("main", &PathQuery::default()).await.unwrap().items.is_empty());
    alice.put_narinfo("main", &path).await.assert_status(201);
    let served = server.http().get(&format!("/main/{}", path.nar_url())).await;
    assert_eq!(served.assert_status(200).body, path.file);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_credential_is_refused_and_never_taken_for_none() {
    let server = server().await;
    let token = server.token("alice", &["push:main"]).await.text;
    let path = TestPath::new("thing", "hello");
    let basic = |text: &str| format!("Basic {}", BASE64.encode(text.as_bytes()));
    let end = token.len() - 5;
    let other = if &token[end..=end] == "A" { "B" } else { "A" };
    let forged = format!("{}{other}{}", &token[..end], &token[end + 1..]);
    let table = [
        ("a scheme alone", "Basic".to_owned()),
        ("a bearer of nothing", "Bearer ".to_owned()),
        ("another scheme", format!("Digest {token}")),
        ("no scheme", token.clone()),
        ("not base64", "Basic &&&&".to_owned()),
        ("no colon", basic(&token)),
        ("an empty pair", basic(":")),
        ("a wrong password", basic("alice:secret")),
        ("a token and more", basic(&format!("alice:{token}x"))),
        ("the token as a user with a password", basic(&format!("{token}:x"))),
        ("a changed signature", format!("Bearer {forged}")),
        ("half a token", format!("Bearer {}", &token[..token.len() / 2])),
        ("two tokens", format!("Bearer {token} {token}")),
        ("a token in quotes", format!("Bearer \"{token}\"")),
        ("one of no algorithm", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.".to_owned()),
        ("a very long one", format!("Bearer {}", "x".repeat(8000))),
    ];

    for (what, authorization) in &table {
        println!("{what}");
        let http = server.http().with_authorization(authorization);
        for answer in [
            http.get("/push/main/nix-cache-info").await,
            http.head("/push/main/nix-cache-info").await,
            http.put_nar("main", &path).await,
            http.put_narinfo("main", &path).await,
        ] {
            assert_eq!(answer.header("www-authenticate"), "Basic realm=\"narvault\", charset=\"UTF-8\"");
            if answer.body.is_empty() {
                answer.assert_status(401);
            } else {
                answer.assert_refused(401, "this is not a token of this server");
            }
        }
        let whoami = http.get("/api/v1/auth/whoami").await;
        assert_eq!(whoami.assert_status(401).header("content-type"), "application/problem+json");
    }

    let bearer = format!("Bearer {token}");
    let both = server.http().with_token(&token).request(Method::GET, "/push/main/nix-cache-info");
    Answer::of(both.header("authorization", &bearer)).await.assert_refused(401, "not a token");
    let alice = server.http().with_authorization(&basic(&format!("anybody:{token}")));
    nothing_happened(&server, &alice).await;
    server.stop().await;
}

/// A request whose target goes out byte for byte: libraries resolve `%2e%2e` by themselves.
async fn raw(server: &TestServer, method: &str, target: &str, token: &Token, body: &[u8]) -> Answer {
    let address = server.url.strip_prefix("http://").unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        token.text,
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
    Answer { status, headers: headers.collect(), body: body.to_owned().into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_no_object_has_is_refused() {
    let server = server().await;
    let token = server.token("alice", &["push:main"]).await;
    let path = TestPath::new("thing", "hello");
    let (hash, file) = (path.hash(), path.nar_url());
    let digest = file.strip_prefix("nar/").unwrap().strip_suffix(".nar").unwrap().to_owned();
    #[rustfmt::skip]
    let table: Vec<(String, u16, &str)> = vec![
        ("x".to_owned(), 404, "no such object in a binary cache"),
        ("robots.txt".to_owned(), 404, "no such object in a binary cache"),
        (".narinfo".to_owned(), 404, "no such object"),
        (format!("{}.narinfo", &hash[1..]), 404, "no such object"),
        (format!("{}.narinfo", hash.to_uppercase()), 404, "no such object"),
        (format!("e{}.narinfo", &hash[1..]), 404, "no such object"),
        (format!("nar/{hash}.narinfo"), 404, "no such object"),
        (format!("{hash}.narinfo/"), 404, "no such object"),
        (format!("{digest}.nar"), 404, "no such object"),
        (format!("nar/{}.nar", &digest[1..]), 404, "no such object"),
        (format!("nar/{digest}"), 404, "no such object"),
        (format!("nar/{digest}.nar.lz4"), 422, "compression not accepted; use xz"),
        (format!("nar/{digest}.nar.gz"), 422, "compression not accepted; use xz"),
        (format!("nar/{digest}.nar?x=1"), 404, "no such object"),
        (format!("nar//{digest}.nar"), 404, "no such object"),
        (format!("nar/%2e%2e/{digest}.nar"), 404, "no such object"),
        (format!("nar%2f..%2f..%2f{digest}.nar"), 404, "no such object"),
        (format!("%2e%2e/other/nar/{digest}.nar"), 404, "no such object"),
        ("..%2f_narvault%2fcluster".to_owned(), 404, "no such object"),
        ("_narvault/cluster".to_owned(), 404, "no such object"),
        ("%00".to_owned(), 404, "no such object"),
        ("%ff%fe".to_owned(), 404, "no such object"),
        (format!("log/{hash}-thing"), 404, "no such object"),
        ("log/..%2f..%2fx.drv".to_owned(), 404, "no such object"),
        ("debuginfo/xyz.debug".to_owned(), 404, "no such object"),
        (format!("debuginfo/{}", "a".repeat(40)), 404, "no such object"),
        ("realisations/sha256:abc!out.doi".to_owned(), 404, "no such object"),
        ("build-trace-v2/x/out.doi".to_owned(), 404, "no such object"),
        (format!("build-trace-v2/{hash}-x.drv/{}.doi", "o".repeat(300)), 404, "no such object"),
        ("x".repeat(8000), 404, "no such object"),
    ];

    for (name, status, text) in table {
        println!("{name}");
        let target = format!("/push/main/{name}");
        raw(&server, "PUT", &target, &token, &path.file).await.assert_refused(status, text);
        raw(&server, "GET", &target, &token, b"").await.assert_refused(404, "no such object");
    }

    nothing_happened(&server, &token.http).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_object_beside_a_path_is_refused_and_to_be_seen_nowhere() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");
    let build_id = "a".repeat(40);
    let listing = format!("{}.ls", path.hash());
    let debug_info = format!("debuginfo/{build_id}.debug");
    let log = format!("log/{}-thing.drv", path.hash());
    let id = format!("sha256:{}!out", "0".repeat(64));
    let realisation = format!("realisations/{id}.doi");
    let member = format!("lib/debug/.build-id/aa/{}.debug", &build_id[2..]);
    let archive = format!("../{}", path.nar_url());
    let link = |archive: &str, member: &str| format!(r#"{{"archive":"{archive}","member":"{member}"}}"#);
    let of = |id: &str, out: &str| {
        format!(r#"{{"id":"{id}","outPath":"{out}","dependentRealisations":{{}},"signatures":[]}}"#)
    };
    let deep = format!(
        r#"{{"version":1,"root":{}{}}}"#,
        r#"{"type":"directory","entries":{"d":"#.repeat(200),
        "}}".repeat(200)
    );
    let base = &path.store_path["/nix/store/".len()..];
    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (&listing, Vec::new(), 422, "listing"),
        (&listing, b"hello".to_vec(), 422, "listing"),
        (&listing, b"[]".to_vec(), 422, "listing"),
        (&listing, br#"{"version":2,"root":{"type":"regular","size":1}}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1,"root":{"type":"socket"}}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1,"root":{"type":"regular","target":"x"}}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1,"root":{"type":"directory","entries":{"..":{"type":"regular","size":1}}}}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1,"version":1,"root":{"type":"regular","size":1}}"#.to_vec(), 422, "listing"),
        (&listing, br#"{"version":1,"root":{"type":"regular","size":1}} and more"#.to_vec(), 422, "listing"),
        (&listing, deep.into(), 422, "listing"),
        (&listing, vec![b' '; (16 << 20) + 1], 413, "larger than"),
        (&debug_info, b"hello".to_vec(), 422, "debuginfo is not the JSON"),
        (&debug_info, link("https://example.org/x.nar", &member).into(), 422, "debuginfo's archive is not `../nar/`"),
        (&debug_info, link("../nar/../x", &member).into(), 422, "debuginfo's archive is refused"),
        (&debug_info, link(&archive, "../../etc/passwd").into(), 422, "debuginfo's member is not"),
        (&debug_info, link(&archive, &member.replace('a', "b")).into(), 422, "debuginfo's member is not"),
        (&debug_info, vec![b' '; 5000], 422, "debuginfo is larger than"),
        (&log, b"text\0text".to_vec(), 422, "build log is not"),
        (&realisation, b"hello".to_vec(), 422, "realisation is not the JSON"),
        (&realisation, of(&id.replace("!out", "!dev"), base).into(), 422, "realisation's `id` is not that of its name"),
        (&realisation, of(&id, "../x").into(), 422, "realisation's `outPath` is refused"),
        (&realisation, of(&id, base).into(), 422, "is not published in this cache"),
        (&realisation, vec![b' '; (1 << 20) + 1], 413, "the realisation is larger than"),
    ];

    for (object, body, status, text) in table {
        println!("{object}: {:?}", String::from_utf8_lossy(&body[..body.len().min(200)]));
        alice.put(&format!("/push/main/{object}"), body).await.assert_refused(status, text);
        alice.get(&format!("/push/main/{object}")).await.assert_refused(404, "no such object");
        server.http().get(&format!("/main/{object}")).await.assert_refused(404, "no such object");
    }

    nothing_happened(&server, &alice).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_what_its_encoding_says_is_refused() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");
    alice.put_nar("main", &path).await.assert_status(201);
    let bomb = xz(&vec![b' '; 64 << 20]);
    let plain = path.narinfo().into_bytes();
    let cut = without_end(&xz(&plain));
    let put = async |object: &str, encoding: &str, body: &[u8]| {
        let request = alice.request(Method::PUT, &format!("/push/main/{object}"));
        let request = request.header("content-encoding", encoding).body(Bytes::copy_from_slice(body));
        Answer::of(request).await
    };
    let narinfo = format!("{}.narinfo", path.hash());
    let table: [(&str, &[u8], u16, &str); 12] = [
        ("lzma", &plain, 422, "Content-Encoding is not one of gzip"),
        ("compress", &plain, 422, "Content-Encoding is not one of gzip"),
        ("gzip, br", &plain, 422, "Content-Encoding is not one of gzip"),
        ("", &plain, 422, "Content-Encoding is not one of gzip"),
        ("gzip", &plain, 422, "not what its Content-Encoding says"),
        ("deflate", &plain, 422, "not what its Content-Encoding says"),
        ("br", b"this is none of them", 422, "not what its Content-Encoding says"),
        ("zstd", &plain, 422, "not what its Content-Encoding says"),
        ("xz", &plain, 422, "not what its Content-Encoding says"),
        ("bzip2", &plain, 422, "not what its Content-Encoding says"),
        ("xz", &cut, 422, "not what its Content-Encoding says"),
        ("xz", &bomb, 413, "the decoded body is larger than"),
    ];

    for (encoding, body, status, text) in table {
        println!("{encoding}");
        put(&narinfo, encoding, body).await.assert_refused(status, text);
        server.http().get(&format!("/main/{narinfo}")).await.assert_refused(404, "no such object");
    }

    put(&path.nar_url(), "gzip", &path.file).await.assert_refused(422, "a NAR takes no Content-Encoding");
    put(&narinfo, "XZ", &xz(&plain)).await.assert_status(201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_come_in_one_order() {
    let settings = [("NARVAULT_LIMITS_NAR_SIZE_BYTES", "1 MiB")];
    let server = TestServer::start_with(Backend::SQLITE_DISK, &settings).await.unwrap();
    let stranger = server.token("stranger", &["pull:main"]).await.http;
    let alice = server.token("alice", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");
    let narinfo = format!("/push/main/{}.narinfo", path.hash());
    let huge = vec![b'x'; (1 << 20) + 1];
    let huge_nar = vec![b'x'; 2 << 20];
    let refused_nar = format!("/push/main/{}.lz4", path.nar_url());
    let encoded = async |body: &[u8]| {
        let request = alice.request(Method::PUT, &format!("/push/main/{}", path.nar_url()));
        Answer::of(request.header("content-encoding", "gzip").body(Bytes::copy_from_slice(body))).await
    };
    server.admin().vault_seal().await.unwrap();

    // Each request is wrong in every way that comes later, too.
    server.http().put("/push/main/nonsense", huge.clone()).await.assert_refused(401, "this needs a token");
    stranger.put("/push/main/nonsense", huge.clone()).await.assert_refused(403, "does not allow that");
    alice.put("/push/main/nonsense", huge.clone()).await.assert_refused(404, "no such object");
    let post = alice.request(Method::POST, &narinfo).body(huge.clone());
    Answer::of(post).await.assert_refused(405, "this URL takes GET, HEAD, PUT only");
    alice.put(&narinfo, huge.clone()).await.assert_refused(423, "narvault is sealed");
    stranger.put(&refused_nar, huge_nar.clone()).await.assert_refused(403, "does not allow that");
    alice.put(&refused_nar, huge_nar.clone()).await.assert_refused(423, "narvault is sealed");
    encoded(&huge_nar).await.assert_refused(423, "narvault is sealed");
    server.admin().vault_unseal(&UnsealRequest::default()).await.unwrap();
    alice.put(&narinfo, huge).await.assert_refused(413, "the narinfo is larger than");
    alice.put(&refused_nar, huge_nar.clone()).await.assert_refused(413, "the uploaded file is larger than");
    encoded(&huge_nar).await.assert_refused(413, "the uploaded file is larger than");
    alice.put(&refused_nar, "nonsense").await.assert_refused(422, "compression not accepted");
    encoded(b"nonsense").await.assert_refused(422, "a NAR takes no Content-Encoding");
    alice.put(&narinfo, "nonsense").await.assert_refused(422, "does not end in a line feed");
    alice.put_narinfo("main", &path).await.assert_refused(422, "was not uploaded to this cache");
    alice.push("main", &path).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_to_the_pull_url_is_refused_with_the_push_url() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");

    for http in [server.http(), alice.clone()] {
        for object in [path.nar_url(), format!("{}.narinfo", path.hash()), "nix-cache-info".to_owned()] {
            let answer = http.put(&format!("/main/{object}"), path.file.clone()).await;
            answer.assert_refused(405, "push to http");
            assert!(answer.text().contains("/push/main"), "{}", answer.text());
            assert_eq!(answer.header("allow"), "GET, HEAD");
        }
    }

    nothing_happened(&server, &alice).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_tell_a_private_cache_from_none() {
    let server = server().await;
    let body = serde_json::from_value(serde_json::json!({ "name": "team", "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    let stranger = server.token("stranger", &["push:main"]).await.http;
    let path = TestPath::new("thing", "hello");
    let objects = ["nix-cache-info".to_owned(), path.nar_url(), format!("{}.narinfo", path.hash())];
    // What a stranger sees of an answer.
    let seen = |answer: Answer| {
        let mut headers = answer.headers.clone();
        for changing in ["date", "x-request-id"] {
            headers.remove(changing);
        }
        (answer.status, headers, answer.body)
    };

    for http in [server.http(), stranger] {
        for side in ["", "/push"] {
            for object in &objects {
                for method in [Method::GET, Method::HEAD, Method::PUT] {
                    let of = async |cache: &str| {
                        let url = format!("{side}/{cache}/{object}");
                        seen(Answer::of(http.request(method.clone(), &url)).await)
                    };
                    let (private, none) = (of("team").await, of("none").await);
                    assert_eq!(private, none, "{method} {side} {object}");
                    assert!(matches!(private.0, 401 | 403), "{private:?}");
                }
            }
        }
    }
    server.stop().await;
}
