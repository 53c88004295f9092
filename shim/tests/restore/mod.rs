//! Containers that come from a checkpoint, with a runtime that restores by running the command.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use protos::any::pack;
use protos::runc::{CheckpointOptions, Options};
use protos::shim::task as api;
use protos::task::Status;
use protos::wire::Wire as _;
use ttrpc::Code;

use crate::driver::{Driver, Task, context};
use crate::driver::{block_on, code};

/// Refuses while `<itself>.refuse` is there, saying why where CRIU and runc would.
const RUNTIME: &str = r#"#!/bin/sh
for word; do
    case $before in
    --work-path) work=$word ;; --root) root=$word ;; --log) log=$word ;;
    --bundle) bundle=$word ;; --pid-file) pid=$word ;;
    esac
    case $word in checkpoint|restore) verb=$word ;; esac
    before=$word id=$word
done
[ -n "$verb" ] || exec runc "$@"
if [ -e "$0.refuse" ]; then
    echo "(00.1) 1: Error (criu/stand-in.c:1): not today" | tee "$work/dump.log" >"$work/restore.log"
    printf '{"level":"error","msg":"criu failed\\nlog file: %s/x"}\n' "$work" >>"$log"
    exit 1
fi
[ "$verb" = checkpoint ] && { cat "$CRIU_CONFIG_FILE" >"$0.dumped"; exit 0; }
[ -z "$CRIU_CONFIG_FILE" ] || cat "$CRIU_CONFIG_FILE" >"$0.restored"
runc --root "$root" --log "$log" --log-format json create --bundle "$bundle" --pid-file "$pid" "$id" &&
    exec runc --root "$root" --log "$log" --log-format json start "$id"
"#;

struct Place {
    driver: Driver,
    runtime: PathBuf,
    image: PathBuf,
}

impl Place {
    async fn new() -> Self {
        let driver = Driver::new().await;
        let runtime = driver.dir.path().join("runc");
        std::fs::write(&runtime, RUNTIME).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
        let image = driver.dir.path().join("image");
        std::fs::create_dir(&image).unwrap();
        Self {
            driver,
            runtime,
            image,
        }
    }

    fn refuse(&self, on: bool) {
        let file = self.runtime.with_extension("refuse");
        if on {
            std::fs::write(file, "").unwrap();
        } else {
            std::fs::remove_file(file).unwrap();
        }
    }

    /// A shim with a task of the image that is not started; its answer to the creation.
    async fn create(&mut self, id: &str, script: &str) -> (Task, ttrpc::Result<u32>) {
        let output = self.driver.log(id);
        self.create_with(id, script, output).await
    }

    async fn create_with(
        &mut self,
        id: &str,
        script: &str,
        output: String,
    ) -> (Task, ttrpc::Result<u32>) {
        let bundle = self.driver.make_bundle(id, script, id);
        let address = self.driver.start(id).await;
        let task = Task::connect(&address, id).await;
        std::fs::write(bundle.join("test-shim.pid"), task.shim.to_string()).unwrap();
        let options = Options {
            binary_name: self.runtime.display().to_string(),
            ..Options::default()
        };
        let request = api::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            stdout: output.clone(),
            stderr: output,
            checkpoint: self.image.display().to_string(),
            options: Some(pack(&options).unwrap().to_wire()).into(),
            ..Default::default()
        };
        let created = task.client.create(context(), &request).await;
        (task, created.map(|answer| answer.pid))
    }
}

async fn checkpoint(task: &Task, path: &str) -> ttrpc::Result<()> {
    let options = CheckpointOptions::default();
    let request = api::CheckpointTaskRequest {
        id: task.id.clone(),
        path: path.into(),
        options: Some(pack(&options).unwrap().to_wire()).into(),
        ..Default::default()
    };
    task.client.checkpoint(context(), &request).await.map(drop)
}

#[test]
fn a_container_of_a_checkpoint_has_no_process_before_its_start() {
    block_on(async {
        let mut place = Place::new().await;
        let (task, created) = place.create("c1", "echo back; exit 7").await;
        assert_eq!(created.unwrap(), 0);
        let state = task.state().await.unwrap();
        let found = (state.status.enum_value(), state.pid);
        assert_eq!(found, (Ok(Status::CREATED), 0));
        let killed = task.kill("", 9).await.unwrap_err();
        assert_eq!(code(&killed), Code::NOT_FOUND);
        for refused in [
            task.exec("e", "exit 0", "").await.unwrap_err(),
            checkpoint(&task, "/nowhere").await.unwrap_err(),
        ] {
            assert_eq!(code(&refused), Code::FAILED_PRECONDITION, "{refused}");
        }
        // Who waits before the start learns of the end.
        let (waited, started) = tokio::join!(task.wait(""), task.start(""));
        let pid = started.unwrap();
        assert!(pid > 0);
        assert_eq!(waited, 7);
        let again = task.start("").await.unwrap_err();
        assert_eq!(code(&again), Code::NOT_FOUND);
        let gone = task.delete("").await.unwrap();
        assert_eq!((gone.pid, gone.exit_status), (pid, 7));
        let want = ["create", "start", "exit", "delete"].map(|t| format!("/tasks/{t}"));
        assert_eq!(place.driver.topics(4).await, want);
        assert_eq!(place.driver.output("c1"), "back\n");
        task.shutdown().await;
        task.shim_ends().await;
    });
}

#[test]
fn a_failed_restore_says_why_and_may_be_tried_again() {
    block_on(async {
        let mut place = Place::new().await;
        place.refuse(true);
        let (task, created) = place.create("c1", "exit 3").await;
        created.unwrap();
        let refused = task.start("").await.unwrap_err().to_string();
        assert!(refused.contains("criu failed: not today"), "{refused}");
        let bundle = place.driver.bundle("c1");
        assert!(!bundle.join("init.pid").exists() && !bundle.join("work/criu-work").exists());
        let state = task.state().await.unwrap();
        let found = (state.status.enum_value(), state.pid);
        assert_eq!(found, (Ok(Status::CREATED), 0));
        place.refuse(false);
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await, 3);
        task.delete("").await.unwrap();
        task.shutdown().await;
        task.shim_ends().await;
    });
}

#[test]
fn a_container_that_was_never_restored_goes_without_the_runtime() {
    block_on(async {
        let mut place = Place::new().await;
        let (task, created) = place.create("c1", "exit 0").await;
        created.unwrap();
        std::fs::remove_file(&place.runtime).unwrap();
        let request = api::WaitRequest {
            id: "c1".into(),
            ..Default::default()
        };
        let waiting = task.client.wait(context(), &request);
        let (waited, gone) = tokio::join!(waiting, task.delete(""));
        assert_eq!(gone.unwrap().pid, 0);
        assert_eq!(code(&waited.unwrap_err()), Code::NOT_FOUND);
        let want = ["create", "delete"].map(|t| format!("/tasks/{t}"));
        assert_eq!(place.driver.topics(2).await, want);
        task.shutdown().await;
        task.shim_ends().await;
    });
}

#[test]
fn streams_of_the_host_are_named_at_the_dump_and_found_at_the_restore() {
    block_on(async {
        let mut place = Place::new().await;
        let fifo = place.driver.dir.path().join("fifo");
        let reader = sys::fifo::Fifo::make(&fifo, 0o600).unwrap();
        let _reader = reader.open_nonblocking(sys::fifo::End::Read).unwrap();
        let output = fifo.display().to_string();
        let loops = "while :; do sleep 1; done";
        let (task, created) = place.create_with("c1", loops, output.clone()).await;
        created.unwrap();
        task.start("").await.unwrap();
        let image = place.image.display().to_string();
        checkpoint(&task, &image).await.unwrap();
        let dumped = std::fs::read_to_string(place.runtime.with_extension("dumped")).unwrap();
        let file = dumped.strip_prefix("external ").unwrap().trim_end();
        assert!(
            file.starts_with("file[") && !file.contains('\n'),
            "{dumped}"
        );
        // Paused or not: where it stands is kept.
        place.refuse(true);
        let refused = checkpoint(&task, &image).await.unwrap_err().to_string();
        assert!(
            refused.contains("criu failed: not today (log: "),
            "{refused}"
        );
        place.refuse(false);
        let state = task.state().await.unwrap().status.enum_value();
        assert_eq!(state, Ok(Status::RUNNING));
        let (other, created) = place.create_with("c2", "exit 0", output).await;
        created.unwrap();
        other.start("").await.unwrap();
        let restored = std::fs::read_to_string(place.runtime.with_extension("restored")).unwrap();
        assert_eq!(restored, format!("inherit-fd fd[1]:{file}\n"));
        other.wait("").await;
        task.kill("", 9).await.unwrap();
        task.wait("").await;
        for task in [task, other] {
            task.delete("").await.unwrap();
            task.shutdown().await;
            task.shim_ends().await;
        }
        let want = ["create", "start", "checkpointed"].map(|t| format!("/tasks/{t}"));
        assert_eq!(place.driver.topics(3).await, want);
    });
}
