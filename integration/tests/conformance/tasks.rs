//! Tasks: what their clients rely on, whatever the shim.

use std::fs;

use grpc::tasks::TasksClient;
use protos::services::tasks::{
    CreateTaskRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
    ListPidsRequest, ListTasksRequest, MetricsRequest, PauseTaskRequest, ResizePtyRequest,
    ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
};
use protos::task::Status as Phase;
use protos::well_known::Any;
use protos::{EnumOrUnknown, MessageField};
use tonic::Code;

use crate::containers::any;
use crate::peer::{Peer, called_invalid, labels, refused, texts, within};
use crate::running::{Running, spec};

rules! {
    both {
        one_that_is_read_has_an_id_and_no_container_id
        one_that_ended_is_listed_until_it_is_deleted
        waiting_is_right_before_the_start_and_after_the_end
        one_that_runs_is_not_deleted
        one_that_is_there_is_not_made_again
        a_container_that_is_not_there_gets_none
        what_is_not_there_is_not_found
        an_exec_that_ended_is_deleted_under_its_own_id
        an_exec_needs_an_id_of_its_own
        pids_of_execs_tell_their_id
        metrics_are_of_those_that_pass_a_filter
        an_update_takes_resources_and_annotations
        one_is_paused_and_resumed
        a_list_ignores_its_filter
        namespaces_do_not_share_tasks
        without_a_terminal_resizing_is_nothing
        the_path_of_a_runtime_goes_before_that_of_the_container
    }
    ours {}
}

/// Type of the process of an exec.
pub(crate) const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type of resources.
pub(crate) const RESOURCES: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A process that ends when it is killed.
pub(crate) fn sleeper() -> Any {
    any(
        PROCESS,
        r#"{"args":["/bin/sleep","1000"],"cwd":"/","user":{}}"#,
    )
}

fn phase(phase: Phase) -> EnumOrUnknown<Phase> {
    phase.into()
}

impl Running {
    fn exec(&self, exec: &str) -> ExecProcessRequest {
        ExecProcessRequest {
            container_id: self.id().into(),
            exec_id: exec.into(),
            spec: MessageField::some(sleeper()),
            ..Default::default()
        }
    }

    fn start(&self, exec: &str) -> StartRequest {
        StartRequest {
            container_id: self.id().into(),
            exec_id: exec.into(),
            ..Default::default()
        }
    }

    fn wait(&self, exec: &str) -> WaitRequest {
        WaitRequest {
            container_id: self.id().into(),
            exec_id: exec.into(),
            ..Default::default()
        }
    }

    fn delete_process(&self, exec: &str) -> DeleteProcessRequest {
        DeleteProcessRequest {
            container_id: self.id().into(),
            exec_id: exec.into(),
            ..Default::default()
        }
    }

    /// Ids in a list.
    async fn listed(&self, peer: &Peer, namespace: &str, filter: &str) -> Vec<String> {
        let request = ListTasksRequest {
            filter: filter.into(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        let answer = client.list(within(namespace, request)).await.expect("list");
        let tasks = answer.into_inner().tasks;
        assert!(tasks.iter().all(|task| task.container_id.is_empty()));
        tasks.into_iter().map(|task| task.id).collect()
    }
}

async fn one_that_is_read_has_an_id_and_no_container_id(peer: &Peer) {
    let task = Running::created(peer).await;
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(
        (found.container_id.as_str(), found.id.as_str()),
        ("", task.id())
    );
    assert_eq!(found.status, phase(Phase::CREATED));
    assert!(found.pid > 0);
    task.begin(peer).await;
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(
        (found.container_id.as_str(), found.id.as_str()),
        ("", task.id())
    );
    assert_eq!(found.status, phase(Phase::RUNNING));
    assert_eq!((found.exit_status, found.terminal), (0, false));
    task.end(peer).await;
}

async fn one_that_ended_is_listed_until_it_is_deleted(peer: &Peer) {
    let task = Running::new(peer).await;
    let pid = task.state(peer, "").await.expect("get").pid;
    let exit = task.kill(peer).await;
    assert_eq!(exit.exit_status, 128 + 9);
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(found.status, phase(Phase::STOPPED));
    assert_eq!(found.exit_status, 128 + 9);
    assert_eq!(task.listed(peer, task.namespace(), "").await, [task.id()]);
    let gone = task.delete(peer).await.expect("delete");
    assert_eq!((gone.exit_status, gone.pid), (128 + 9, pid));
    assert_eq!(gone.exited_at, exit.exited_at);
    refused(Code::NotFound, task.state(peer, "").await);
    assert_eq!(task.listed(peer, task.namespace(), "").await, [""; 0]);
    task.end(peer).await;
}

async fn waiting_is_right_before_the_start_and_after_the_end(peer: &Peer) {
    let task = Running::created(peer).await;
    let (mut client, request) = (TasksClient::new(peer.channel()), task.asks(task.wait("")));
    let early = tokio::spawn(async move { client.wait(request).await });
    task.begin(peer).await;
    let told = task.kill(peer).await;
    let early = early.await.expect("waits").expect("wait").into_inner();
    let mut client = TasksClient::new(peer.channel());
    let late = client.wait(task.asks(task.wait(""))).await.expect("wait");
    let late = late.into_inner();
    assert_eq!(early, told);
    assert_eq!(late, told);
    assert_eq!(late.exit_status, 128 + 9);
    assert!(late.exited_at.seconds > 0);
    task.end(peer).await;
}

async fn one_that_runs_is_not_deleted(peer: &Peer) {
    let task = Running::new(peer).await;
    let status = task.delete(peer).await.expect_err("it runs");
    assert!(status.message().contains("running"), "{status}");
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(found.status, phase(Phase::RUNNING));
    task.end(peer).await;
}

async fn one_that_is_there_is_not_made_again(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    let again = client.create(task.asks(task.request(""))).await;
    let text = refused(Code::AlreadyExists, again);
    assert!(text.contains(task.id()), "{text}");
    assert_eq!(task.listed(peer, task.namespace(), "").await, [task.id()]);
    task.end(peer).await;
}

async fn a_container_that_is_not_there_gets_none(peer: &Peer) {
    let request = CreateTaskRequest {
        container_id: "none".into(),
        ..Default::default()
    };
    let mut client = TasksClient::new(peer.channel());
    let text = refused(Code::NotFound, client.create(within("n", request)).await);
    assert!(text.contains("none"), "{text}");
}

async fn what_is_not_there_is_not_found(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    let kill = |id: &str, exec: &str| {
        let request = KillRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            signal: 9,
            ..Default::default()
        };
        task.asks(request)
    };
    refused(Code::NotFound, client.kill(kill("none", "")).await);
    refused(Code::NotFound, client.kill(kill(task.id(), "e")).await);
    refused(Code::NotFound, task.state(peer, "e").await);
    let get = GetRequest {
        container_id: "none".into(),
        ..Default::default()
    };
    refused(Code::NotFound, client.get(task.asks(get)).await);
    task.kill(peer).await;
    refused(Code::NotFound, client.kill(kill(task.id(), "")).await);
    task.end(peer).await;
}

async fn an_exec_that_ended_is_deleted_under_its_own_id(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    client.exec(task.asks(task.exec("e"))).await.expect("exec");
    let started = client.start(task.asks(task.start("e"))).await;
    let pid = started.expect("start").into_inner().pid;
    let found = task.state(peer, "e").await.expect("get");
    assert_eq!((found.id.as_str(), found.pid), ("e", pid));
    assert_eq!(found.status, phase(Phase::RUNNING));
    let kill = KillRequest {
        container_id: task.id().into(),
        exec_id: "e".into(),
        signal: 15,
        ..Default::default()
    };
    client.kill(task.asks(kill)).await.expect("kill");
    let exit = client.wait(task.asks(task.wait("e"))).await.expect("wait");
    assert_eq!(exit.into_inner().exit_status, 128 + 15);
    let gone = client.delete_process(task.asks(task.delete_process("e")));
    let gone = gone.await.expect("delete").into_inner();
    assert_eq!((gone.id.as_str(), gone.pid), ("e", pid));
    assert_eq!(gone.exit_status, 128 + 15);
    let again = client.delete_process(task.asks(task.delete_process("e")));
    refused(Code::NotFound, again.await);
    task.end(peer).await;
}

async fn an_exec_needs_an_id_of_its_own(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    let nameless = client.exec(task.asks(task.exec(""))).await;
    refused(Code::InvalidArgument, nameless);
    client.exec(task.asks(task.exec("e"))).await.expect("exec");
    let again = client.exec(task.asks(task.exec("e"))).await;
    refused(Code::AlreadyExists, again);
    let found = task.state(peer, "e").await.expect("get");
    assert_eq!(found.status, phase(Phase::CREATED));
    let gone = client.delete_process(task.asks(task.delete_process("e")));
    gone.await.expect("delete");
    task.end(peer).await;
}

async fn pids_of_execs_tell_their_id(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    client.exec(task.asks(task.exec("e"))).await.expect("exec");
    let started = client.start(task.asks(task.start("e"))).await;
    let exec = started.expect("start").into_inner().pid;
    let init = task.state(peer, "").await.expect("get").pid;
    let request = ListPidsRequest {
        container_id: task.id().into(),
        ..Default::default()
    };
    let answer = client.list_pids(task.asks(request)).await.expect("pids");
    let mut found = answer.into_inner().processes;
    found.sort_by_key(|process| process.pid != init);
    let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [init, exec]);
    assert!(found[0].info.is_none(), "{found:?}");
    assert_eq!(found[1].info.type_url, "containerd.runc.v1.ProcessDetails");
    // Its only field, 1, is the id.
    assert_eq!(found[1].info.value[..], *b"\x0a\x01e");
    task.end(peer).await;
}

async fn metrics_are_of_those_that_pass_a_filter(peer: &Peer) {
    let task = Running::new(peer).await;
    let (id, namespace) = (task.id(), task.namespace());
    for (filters, is_told) in [
        (vec![], true),
        (vec![format!("id=={id}")], true),
        (
            vec![format!("id==none"), format!("namespace=={namespace}")],
            true,
        ),
        (vec![format!("id=={id},namespace=={namespace}")], true),
        (vec!["id==none".to_owned()], false),
        (vec![format!("id=={id},namespace==none")], false),
    ] {
        let request = MetricsRequest {
            filters: filters.clone(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        let answer = client.metrics(task.asks(request)).await.expect("metrics");
        let found = answer.into_inner().metrics;
        let ids: Vec<&str> = found.iter().map(|metric| metric.id.as_str()).collect();
        let told: &[&str] = if is_told { &[id] } else { &[] };
        assert_eq!(ids, told, "{filters:?}");
        for metric in &found {
            let kind = metric.data.type_url.as_str();
            let kinds = [
                "io.containerd.cgroups.v1.Metrics",
                "io.containerd.cgroups.v2.Metrics",
            ];
            assert!(kinds.contains(&kind), "{kind}");
            assert!(metric.timestamp.seconds > 0);
        }
    }
    let request = MetricsRequest {
        filters: texts(&["((("]),
        ..Default::default()
    };
    let mut client = TasksClient::new(peer.channel());
    called_invalid(client.metrics(task.asks(request)).await);
    task.end(peer).await;
}

/// The limit of processes that the kernel holds a process to.
fn most_processes(pid: u32) -> String {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("groups");
    let group = |controller: &str| {
        let mut rows = table.lines().map(|line| line.splitn(3, ':'));
        let row = rows.find_map(|mut row| {
            let names = row.nth(1)?;
            let is_it = names.split(',').any(|name| name == controller);
            is_it.then(|| row.next().unwrap_or_default().to_owned())
        });
        row.map(|path| format!("/sys/fs/cgroup/{controller}{path}/pids.max"))
    };
    let file = group("pids").or_else(|| group("")).expect("a group");
    fs::read_to_string(file).expect("limit").trim().to_owned()
}

async fn an_update_takes_resources_and_annotations(peer: &Peer) {
    let task = Running::new(peer).await;
    let pid = task.state(peer, "").await.expect("get").pid;
    let request = UpdateTaskRequest {
        container_id: task.id().into(),
        resources: MessageField::some(any(RESOURCES, r#"{"pids":{"limit":77}}"#)),
        annotations: labels(&[("a", "1")]),
        ..Default::default()
    };
    let mut client = TasksClient::new(peer.channel());
    client.update(task.asks(request)).await.expect("update");
    assert_eq!(most_processes(pid), "77");
    task.end(peer).await;
}

async fn one_is_paused_and_resumed(peer: &Peer) {
    let task = Running::new(peer).await;
    let mut client = TasksClient::new(peer.channel());
    let request = PauseTaskRequest {
        container_id: task.id().into(),
        ..Default::default()
    };
    client.pause(task.asks(request)).await.expect("pause");
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(found.status, phase(Phase::PAUSED));
    let request = ResumeTaskRequest {
        container_id: task.id().into(),
        ..Default::default()
    };
    client.resume(task.asks(request)).await.expect("resume");
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(found.status, phase(Phase::RUNNING));
    task.end(peer).await;
}

async fn a_list_ignores_its_filter(peer: &Peer) {
    let task = Running::created(peer).await;
    for filter in ["", "id==none", "((("] {
        let found = task.listed(peer, task.namespace(), filter).await;
        assert_eq!(found, [task.id()], "{filter}");
    }
    task.end(peer).await;
}

async fn namespaces_do_not_share_tasks(peer: &Peer) {
    let task = Running::created(peer).await;
    let get = GetRequest {
        container_id: task.id().into(),
        ..Default::default()
    };
    let mut client = TasksClient::new(peer.channel());
    refused(Code::NotFound, client.get(within("other", get)).await);
    assert_eq!(task.listed(peer, "other", "").await, [""; 0]);
    task.end(peer).await;
}

async fn without_a_terminal_resizing_is_nothing(peer: &Peer) {
    let task = Running::new(peer).await;
    let request = ResizePtyRequest {
        container_id: task.id().into(),
        width: 80,
        height: 25,
        ..Default::default()
    };
    let mut client = TasksClient::new(peer.channel());
    client.resize_pty(task.asks(request)).await.expect("resize");
    task.end(peer).await;
}

async fn the_path_of_a_runtime_goes_before_that_of_the_container(peer: &Peer) {
    let shim = integration::bin_dir().join("containerd-shim-runc-v2");
    let shim = shim.to_string_lossy();
    let task = Running::record(peer, "io.containerd.none.v1", spec).await;
    let mut client = TasksClient::new(peer.channel());
    let without = client.create(task.asks(task.request(""))).await;
    without.expect_err("there is no such runtime");
    let created = client.create(task.asks(task.request(&shim))).await;
    created.expect("create");
    task.begin(peer).await;
    let found = task.state(peer, "").await.expect("get");
    assert_eq!(found.status, phase(Phase::RUNNING));
    task.end(peer).await;
}
