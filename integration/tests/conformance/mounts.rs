//! Mounts that the daemon performs for clients. Go knows the service since 2.2.

use std::fs;
use std::path::Path;

use grpc::containers::ContainersClient;
use grpc::mounts::MountsClient;
use integration::{Host, Program, Whose};
use protos::services::containers::DeleteContainerRequest;
use protos::services::mounts::{
    ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest,
};
use protos::types::{ActivationInfo, Mount};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::introspection::plugins;
use crate::peer::{Peer, all, labels, leased, refused, scoped, texts, within};
use crate::stock::{collect, end, lease};
use crate::transport::create;

// No collection but those that a rule asks for: most of these mounts are kept by nothing.
rules! {
    configured "[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"1h\"\n"
    both {}
    ours {
        mounts_are_performed_and_filled_in_under_a_name
        what_a_client_can_do_itself_is_not_implemented
        names_are_those_of_a_namespace
        lists_are_filtered
        a_lease_keeps_it
        a_container_that_its_label_names_keeps_it
        what_nobody_keeps_is_collected
        a_refusal_leaves_nothing
        nothing_of_it_can_be_changed
        the_manager_is_listed
    }
}

struct Mounts(MountsClient<Channel>);

impl Mounts {
    fn of(peer: &Peer) -> Self {
        Self(MountsClient::new(peer.channel()))
    }

    async fn activate(
        &mut self,
        request: Request<ActivateRequest>,
    ) -> Result<ActivationInfo, Status> {
        let answer = self.0.activate(request).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    async fn deactivate(&mut self, name: &str) -> Result<(), Status> {
        let request = DeactivateRequest {
            name: name.into(),
            ..DeactivateRequest::default()
        };
        self.0.deactivate(scoped(request)).await.map(drop)
    }

    async fn info(&mut self, name: &str) -> Result<ActivationInfo, Status> {
        let request = InfoRequest {
            name: name.into(),
            ..InfoRequest::default()
        };
        let answer = self.0.info(scoped(request)).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    async fn names(&mut self, filters: &[&str]) -> Vec<String> {
        let request = ListRequest {
            filters: texts(filters),
            ..ListRequest::default()
        };
        let found = all(self.0.list(scoped(request)).await).await.expect("list");
        let found = found.into_iter();
        found
            .map(|message| message.info.unwrap_or_default().name)
            .collect()
    }
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.into(),
        options: texts(options),
        ..Mount::default()
    }
}

/// A file system in memory, and a bind mount of a directory in it.
fn request(name: &str, pairs: &[(&str, &str)]) -> ActivateRequest {
    ActivateRequest {
        name: name.into(),
        mounts: vec![
            mount("tmpfs", "tmpfs", &["size=1m", "mode=0750"]),
            mount(
                "format/mkdir/bind",
                "{{ mount 0 }}/fs",
                &["rbind", "X-containerd.mkdir.path={{ mount 0 }}/fs:0755"],
            ),
        ],
        labels: labels(pairs),
        ..ActivateRequest::default()
    }
}

/// What lies on the daemon's mount points.
fn mounted(peer: &Peer) -> Vec<String> {
    let table = format!("/proc/{}/mountinfo", peer.host.daemon_pid());
    let table = fs::read_to_string(table).expect("read");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| point.contains("mount-manager") && within_host(peer, point));
    ours.map(str::to_owned).collect()
}

fn within_host(peer: &Peer, point: &str) -> bool {
    Path::new(point).starts_with(peer.host.state())
}

async fn mounts_are_performed_and_filled_in_under_a_name(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    let info = mounts.activate(scoped(request("m", &[("k", "v")]))).await;
    let info = info.expect("activate");
    assert_eq!(
        (info.name.as_str(), &info.labels),
        ("m", &labels(&[("k", "v")]))
    );
    let [active] = &info.active[..] else {
        panic!("{info:?}");
    };
    assert!(active.mounted_at.is_some());
    assert_eq!(active.mount.type_, "tmpfs");
    let [system] = &info.system[..] else {
        panic!("{info:?}");
    };
    assert_eq!(system.type_, "bind");
    assert_eq!(system.source, format!("{}/fs", active.mount_point));
    assert_eq!(system.options, ["rbind"]);
    assert!(fs::metadata(&system.source).expect("made").is_dir());
    assert_eq!(mounted(peer), [active.mount_point.as_str()]);
    assert_eq!(mounts.info("m").await.expect("info"), info);
    refused(
        Code::AlreadyExists,
        mounts.activate(scoped(request("m", &[]))).await,
    );
    mounts.deactivate("m").await.expect("deactivate");
    assert!(mounted(peer).is_empty());
    refused(Code::NotFound, mounts.info("m").await);
    refused(Code::NotFound, mounts.deactivate("m").await);
}

async fn what_a_client_can_do_itself_is_not_implemented(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    let mut plain = request("m", &[]);
    plain.mounts = vec![mount("bind", "/", &["rbind"])];
    refused(
        Code::Unimplemented,
        mounts.activate(scoped(plain.clone())).await,
    );
    // To look at it is another matter.
    plain.mounts[0].source = peer.host.dir().display().to_string();
    plain.temporary = true;
    let info = mounts.activate(scoped(plain)).await.expect("activate");
    assert_eq!((info.active.len(), info.system.len()), (1, 1));
    assert_eq!(info.system[0].source, info.active[0].mount_point);
    mounts.deactivate("m").await.expect("deactivate");
}

async fn names_are_those_of_a_namespace(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    let own = mounts
        .activate(scoped(request("m", &[])))
        .await
        .expect("activate");
    let other = mounts.activate(within("other", request("m", &[]))).await;
    assert_ne!(other.expect("activate").active, own.active);
    mounts.deactivate("m").await.expect("deactivate");
    assert_eq!(mounted(peer).len(), 1);
    let request = DeactivateRequest {
        name: "m".into(),
        ..DeactivateRequest::default()
    };
    let answer = mounts.0.deactivate(within("other", request)).await;
    drop(answer.expect("deactivate"));
    assert!(mounted(peer).is_empty());
}

async fn lists_are_filtered(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    for (name, value) in [("a", "1"), ("b", "2")] {
        let made = mounts
            .activate(scoped(request(name, &[("k", value)])))
            .await;
        made.expect("activate");
    }
    assert_eq!(mounts.names(&[]).await, ["a", "b"]);
    assert_eq!(mounts.names(&["name==a"]).await, ["a"]);
    assert_eq!(mounts.names(&["labels.k==2"]).await, ["b"]);
    assert!(mounts.names(&["labels.k==3"]).await.is_empty());
    for name in ["a", "b"] {
        mounts.deactivate(name).await.expect("deactivate");
    }
}

async fn a_lease_keeps_it(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let mut mounts = Mounts::of(peer);
    let made = mounts.activate(leased("l", request("m", &[]))).await;
    made.expect("activate");
    collect(peer).await;
    assert_eq!(mounts.names(&[]).await, ["m"]);
    // The end of a lease that is waited for is the end of what it kept.
    end(peer, "l").await;
    assert!(mounts.names(&[]).await.is_empty());
    assert!(mounted(peer).is_empty());
}

async fn a_container_that_its_label_names_keeps_it(peer: &Peer) {
    let mut containers = ContainersClient::new(peer.channel());
    let container = crate::transport::large("c", 10);
    let answer = containers.create(scoped(create(container))).await;
    drop(answer.expect("create"));
    let mut mounts = Mounts::of(peer);
    let kept = request("m", &[("containerd.io/gc.bref.container", "c")]);
    mounts.activate(scoped(kept)).await.expect("activate");
    collect(peer).await;
    assert_eq!(mounts.names(&[]).await, ["m"]);
    let request = DeleteContainerRequest {
        id: "c".into(),
        ..DeleteContainerRequest::default()
    };
    drop(containers.delete(scoped(request)).await.expect("delete"));
    collect(peer).await;
    assert!(mounts.names(&[]).await.is_empty());
    assert!(mounted(peer).is_empty());
}

async fn what_nobody_keeps_is_collected(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    let root = request("m", &[("containerd.io/gc.root", "y")]);
    mounts.activate(scoped(root)).await.expect("activate");
    collect(peer).await;
    assert!(mounts.names(&[]).await.is_empty());
    assert!(mounted(peer).is_empty());
}

async fn a_refusal_leaves_nothing(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    for (kind, source, options, code) in [
        (
            "format/bind",
            "{{ mount 9 }}",
            "rbind",
            Code::InvalidArgument,
        ),
        (
            "format/bind",
            "{{ exec 0 }}",
            "rbind",
            Code::InvalidArgument,
        ),
        (
            "mkdir/bind",
            "/",
            "X-containerd.mkdir.path=/etc/x",
            Code::PermissionDenied,
        ),
        (
            "mkfs/loop",
            "/etc/x",
            "X-containerd.mkfs.size=1m",
            Code::PermissionDenied,
        ),
        (
            "erofs",
            "/etc/hostname",
            "X-containerd.dmverity=/x",
            Code::Unimplemented,
        ),
        ("loop", "/no/such/file", "ro", Code::Unknown),
    ] {
        let mut bad = request("m", &[]);
        bad.mounts.push(mount(kind, source, &[options]));
        refused(code, mounts.activate(scoped(bad)).await);
        assert!(mounted(peer).is_empty(), "{kind}");
    }
    let mut many = request("m", &[]);
    many.mounts = vec![many.mounts[1].clone(); 300];
    refused(Code::InvalidArgument, mounts.activate(scoped(many)).await);
    refused(
        Code::InvalidArgument,
        mounts.activate(scoped(request("", &[]))).await,
    );
    assert!(mounts.names(&[]).await.is_empty());
    assert!(!Path::new("/etc/x").exists());
}

async fn nothing_of_it_can_be_changed(peer: &Peer) {
    let mut mounts = Mounts::of(peer);
    let answer = mounts.0.update(scoped(UpdateRequest::default())).await;
    refused(Code::Unimplemented, answer);
}

async fn the_manager_is_listed(peer: &Peer) {
    let all = plugins(peer, &[]).await;
    for (kind, id) in [
        ("io.containerd.mount-manager.v1", "bolt"),
        ("io.containerd.mount-handler.v1", "erofs"),
        ("io.containerd.grpc.v1", "mounts"),
    ] {
        let row = all.iter().find(|row| row.type_ == kind && row.id == id);
        let row = row.unwrap_or_else(|| panic!("no row {kind}.{id}"));
        assert!(row.init_err.is_none(), "{row:?}");
    }
}

/// A disk in a file of the daemon's root, with a device and a file system.
fn disk(host: &Host) -> ActivateRequest {
    let file = host.root().join("disk").display().to_string();
    ActivateRequest {
        name: "disk".into(),
        mounts: vec![
            mount("mkfs/loop", &file, &["X-containerd.mkfs.size=8m"]),
            mount("format/ext4", "{{ mount 0 }}", &[]),
            mount("format/bind", "{{ mount 1 }}", &["rbind"]),
        ],
        ..ActivateRequest::default()
    }
}

#[test]
fn what_was_mounted_outlives_a_killed_daemon() {
    let mut host = Host::configured("conformance", Whose::Ours, "");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let address = |host: &Host| host.address().display().to_string();
    let connected = async |host: &Host| {
        let channel = client::connect(&address(host), crate::peer::SOON).await;
        Mounts(MountsClient::new(channel.expect("connect")))
    };
    drop(host.ctr(["leases", "create", "--id", "l"]).ok());
    let namespace = host.namespace().to_owned();
    let made = runtime.block_on(async {
        let scope = types::Scope {
            lease: Some("l".parse().expect("a lease")),
            ..types::Scope::new(namespace.parse().expect("a namespace"))
        };
        let request = grpc::request(&scope, disk(&host)).expect("a request");
        connected(&host)
            .await
            .activate(request)
            .await
            .expect("activate")
    });
    let inside = Path::new(&made.system[0].source).join("f");
    fs::write(&inside, "text").expect("write");
    host.kill();
    host.start();
    let known = runtime.block_on(async {
        let request = InfoRequest {
            name: "disk".into(),
            ..InfoRequest::default()
        };
        let answer = connected(&host)
            .await
            .0
            .info(within(&namespace, request))
            .await;
        answer.expect("info").into_inner().info.unwrap_or_default()
    });
    assert_eq!(known, made);
    assert_eq!(fs::read_to_string(&inside).expect("read"), "text");
    drop(runtime);
    drop(host.ctr(["leases", "rm", "--sync", "l"]).ok());
    assert!(!inside.exists());
    let devices = Program::new("losetup").args(["-a"]).run().ok();
    let disk = host.root().join("disk").display().to_string();
    assert!(!devices.contains(&disk), "{devices}");
    host.finish();
}
