//! A real registry with TLS and users, reached by its hosts file and docker's own configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use integration::{Host, IMAGE, Program, Registry, Whose, need};
use registry::testsuite::{Reply, Request, Server};
use registry::{DockerConfig, Pushed, RegistryOpts, Repository};
use types::{Code, Descriptor, Labels, media_type as mt};

use crate::push::digest;

/// The name by which the registry is known: only its hosts file says where it is.
const NAME: &str = "registry.example.test";
/// `user` with the password `pass`.
pub(crate) const USERS: &str =
    "user:$2b$04$LfMysTTOsVNg4VyKKZGwyelIf2HgchgHyhfogjYxrHUMFMOAfx0ma\n";

pub(crate) fn pem(name: &str) -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    top.join("registry/src/tests/tls").join(name)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(future)
}

fn repository(opts: RegistryOpts) -> Repository {
    let reference = format!("{NAME}/secured/blobs:1")
        .parse()
        .expect("reference");
    Repository::new(&reference, opts).expect("repository")
}

#[test]
fn only_who_trusts_it_and_is_trusted_gets_in() {
    let dir = tempfile::tempdir().expect("directory");
    let users = dir.path().join("users");
    fs::write(&users, USERS).expect("write users");
    let registry = Registry::secured(&pem("server.crt"), &pem("server.key"), &users);
    let certs = dir.path().join("certs.d");
    let of_name = certs.join(NAME);
    fs::create_dir_all(&of_name).expect("directory");
    let hosts = |more: &str| {
        let text = format!("server = \"https://{}\"\n{more}", registry.host());
        fs::write(of_name.join("hosts.toml"), text).expect("write hosts.toml");
    };
    let config = dir.path().join("config.json");
    let known = format!(
        r#"{{"auths": {{"https://{}": {{"auth": "dXNlcjpwYXNz"}}}}}}"#,
        registry.host()
    );
    fs::write(&config, known).expect("write config.json");
    let opts = |config: &Path| RegistryOpts {
        host_dirs: vec![certs.clone()],
        authenticator: Some(Arc::new(DockerConfig::new(config))),
        ..RegistryOpts::default()
    };
    let data = Bytes::from(vec![7; 200_000]);
    let said = Program::new(need("sha256sum")).input(&data).run().ok();
    let hex = said.split(' ').next().expect("a digest");
    let blob = Descriptor {
        media_type: mt::OCI_LAYER.into(),
        digest: format!("sha256:{hex}").parse().expect("digest"),
        size: data.len() as u64,
        annotations: Labels::new(),
    };
    block_on(async {
        hosts("");
        let error = repository(opts(&config)).exists(&blob).await;
        let error = error.expect_err("an unknown authority is not trusted");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");

        hosts(&format!("ca = {:?}", pem("ca.crt")));
        let nobody = dir.path().join("none.json");
        let error = repository(opts(&nobody)).exists(&blob).await;
        let error = error.expect_err("strangers are not served");
        assert!(error.is(Code::Unauthenticated), "{error}");

        let to = repository(opts(&config));
        let pushed = to
            .push_blob(&blob, Arc::new(data.clone()), &[], Arc::new(|_| {}))
            .await;
        assert_eq!(pushed.expect("push"), Pushed::Uploaded);
        let mut reader = repository(opts(&config)).open(&blob, 0).expect("open");
        let mut back = Vec::new();
        while let Some(chunk) = reader.chunk().await.expect("read") {
            back.extend_from_slice(&chunk);
        }
        assert!(back == data, "the blob came back changed");
    });
}

/// Docker's configuration with the password of the registry at `host`, in the directory `dir`.
fn known(dir: &Path, host: &str) {
    let text = format!(r#"{{"auths": {{"https://{host}": {{"auth": "dXNlcjpwYXNz"}}}}}}"#);
    fs::write(dir.join("config.json"), text).expect("write config.json");
}

/// The hosts file for `NAME` below `certs`: the mirror is asked first, for what it may give.
fn mirrored(certs: &Path, mirror: &str, registry: &str) {
    let text = format!(
        "server = \"https://{registry}\"\nca = {:?}\n\
         [host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        pem("ca.crt")
    );
    let of_name = certs.join(NAME);
    fs::create_dir_all(&of_name).expect("directory");
    fs::write(of_name.join("hosts.toml"), text).expect("write hosts.toml");
}

#[test]
fn a_mirror_comes_first_and_the_secured_registry_takes_docker_s_credentials() {
    let dir = tempfile::tempdir().expect("directory");
    let users = dir.path().join("users");
    fs::write(&users, USERS).expect("write users");
    let registry = Registry::secured(&pem("server.crt"), &pem("server.key"), &users);
    known(dir.path(), registry.host());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let empty = runtime.block_on(Server::start(|_| Reply::status(404)));
    let certs = dir.path().join("certs.d");
    mirrored(&certs, empty.host(), registry.host());
    // One directory is the daemon's own, the other one comes with the request.
    let sections = format!(
        "[plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = {:?}\n",
        certs.display().to_string()
    );
    let host = Host::configured("secured", Whose::Ours, &sections);
    host.image();
    let want = digest(&host, IMAGE);
    let remote = format!("{NAME}/demo/busybox:1");
    let flag = format!("--hosts-dir={}", certs.display());
    let stranger = dir.path().join("nobody");
    let ctr = |flags: &[&str], config: &Path, rest: &[&str]| {
        let (verb, rest) = rest.split_first().expect("a verb");
        let ctr = host.ctr_program().env("DOCKER_CONFIG", config);
        ctr.args(["images", verb]).args(flags).args(rest).run()
    };
    let ways: [&[&str]; 3] = [&[], &[&flag], &["--local", &flag]];
    for flags in ways {
        let push = ["push", remote.as_str(), IMAGE];
        let told = ctr(flags, &stranger, &push).err();
        assert!(told.contains("unauthenticated"), "{flags:?}: {told}");
        drop(ctr(flags, dir.path(), &push).ok());
    }
    assert_eq!(empty.requests().len(), 0, "a mirror takes nothing");
    for (flags, asked) in ways.into_iter().zip(1..) {
        drop(ctr(&[], &stranger, &["rm", "--sync", IMAGE, &remote]).ok());
        drop(ctr(flags, dir.path(), &["pull", &remote]).ok());
        assert_eq!(digest(&host, &remote), want, "{flags:?}");
        let requests = empty.requests();
        assert!(requests.len() >= asked, "{flags:?}: {requests:?}");
        let is_proper =
            |r: &Request| r.query == format!("ns={NAME}") && r.header("authorization").is_empty();
        assert!(requests.iter().all(is_proper), "{requests:?}");
    }
    // The mirror has it, the registry is gone.
    let full = Registry::start();
    mirrored(&certs, full.host(), registry.host());
    drop(registry);
    for flags in ways {
        drop(ctr(&[], &stranger, &["rm", "--sync", &remote]).ok());
        drop(ctr(flags, &stranger, &["pull", &remote]).ok());
        assert_eq!(digest(&host, &remote), want, "{flags:?}");
    }
    assert!(!host.log().contains("dXNlcjpwYXNz"));
    host.finish();
}

#[test]
fn a_certificate_of_our_own_is_named_in_the_hosts_file() {
    let registry = Registry::of_members(&pem("server.crt"), &pem("server.key"), &pem("ca.crt"));
    let dir = tempfile::tempdir().expect("directory");
    let of_name = dir.path().join(NAME);
    fs::create_dir(&of_name).expect("directory");
    let host = Host::new("members");
    host.image();
    let (remote, flag) = (
        format!("{NAME}/demo/busybox:1"),
        format!("--hosts-dir={}", dir.path().display()),
    );
    for local in [None, Some("--local")] {
        let ctr = |verb: &str, rest: &[&str]| {
            let ctr = host.ctr_program().args(["images", verb]).args(local);
            ctr.args([flag.as_str()]).args(rest).run()
        };
        let hosts = |more: &str| {
            let server = format!("server = \"https://{}\"", registry.host());
            let text = format!("{server}\nca = {:?}\n{more}", pem("ca.crt"));
            fs::write(of_name.join("hosts.toml"), text).expect("write hosts.toml");
        };
        hosts("");
        let told = ctr("push", &[remote.as_str(), IMAGE]).err();
        assert!(told.contains(registry.host()), "{told}");
        let (cert, key) = (pem("client.crt"), pem("client.key"));
        hosts(&format!("client = [[{cert:?}, {key:?}]]"));
        drop(ctr("push", &[remote.as_str(), IMAGE]).ok());
        drop(ctr("pull", &[remote.as_str()]).ok());
        assert_eq!(digest(&host, &remote), digest(&host, IMAGE));
        drop(host.ctr(["images", "rm", "--sync", &remote]).ok());
    }
    host.finish();
}
