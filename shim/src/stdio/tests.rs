//! Fifos, files and loggers, with the test as client and as process.

use super::*;
use crate::testing::{block_on, program, soon, until};
use std::fs::File;
use std::io::{Read as _, Write as _};

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    Fifo::make(&path, 0o600).unwrap();
    path.display().to_string()
}

async fn open(paths: &Paths) -> Result<(Streams, ChildIo)> {
    let reap = Arc::new(Reap::default());
    let options = Options::default();
    let owner = Owner {
        reap: &reap,
        options: &options,
        namespace: "ns",
        id: "c1",
    };
    Streams::open(paths, owner).await
}

fn client_end(path: &str, end: End) -> OwnedFd {
    Fifo::find(Path::new(path)).unwrap().open(end).unwrap()
}

#[test]
fn a_reader_that_goes_and_comes_back_sees_everything_and_then_the_end() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let out = fifo(dir.path(), "out");
        let paths = Paths {
            stdout: out.clone(),
            ..Paths::default()
        };
        let (mut streams, io) = open(&paths).await.unwrap();
        let mut process = File::from(io.stdout);
        drop(client_end(&out, End::Read));
        process.write_all(b"nobody reads, no signal\n").unwrap();
        let mut reader = File::from(client_end(&out, End::Read));
        drop(process);
        assert!(streams.end().is_none());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "nobody reads, no signal\n");
    });
}

#[test]
fn a_reader_that_comes_after_the_end_gets_the_last_bytes() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let out = fifo(dir.path(), "out");
        let paths = Paths {
            stdout: out.clone(),
            stderr: out.clone(),
            ..Paths::default()
        };
        let (mut streams, io) = open(&paths).await.unwrap();
        File::from(io.stderr).write_all(b"last").unwrap();
        drop(io.stdout);
        assert!(streams.end().is_none());
        tokio::task::yield_now().await;
        // Would wait for ever if the shim had let go.
        let reader = tokio::net::unix::pipe::OpenOptions::new()
            .open_receiver(&out)
            .unwrap();
        let mut text = Vec::new();
        let mut reader = tokio::io::BufReader::new(reader);
        tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut text)
            .await
            .unwrap();
        assert_eq!(text, b"last");
    });
}

#[test]
fn stdin_ends_when_the_client_closes_or_says_so() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path(), "in");
        let paths = Paths {
            stdin: path.clone(),
            ..Paths::default()
        };
        // A client that is there from the start: its close is the end.
        let read = Fifo::find(Path::new(&path))
            .unwrap()
            .open(End::Read)
            .unwrap();
        let mut client = File::from(client_end(&path, End::Write));
        drop(read);
        let (_streams, io) = open(&paths).await.unwrap();
        client.write_all(b"input").unwrap();
        drop(client);
        let mut text = String::new();
        File::from(io.stdin).read_to_string(&mut text).unwrap();
        assert_eq!(text, "input");
        // No client yet: no end until it is said.
        let (mut streams, io) = open(&paths).await.unwrap();
        streams.look_for_stdin();
        assert!(!sys::pipe::is_readable(&io.stdin));
        let mut client = File::from(client_end(&path, End::Write));
        client.write_all(b"late").unwrap();
        drop(client);
        streams.close_stdin();
        let mut text = String::new();
        File::from(io.stdin).read_to_string(&mut text).unwrap();
        assert_eq!(text, "late");
    });
}

#[test]
fn files_are_appended_to_and_shared() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/log");
        let address = format!("file://{}", file.display());
        let paths = Paths {
            stdout: address.clone(),
            stderr: address,
            ..Paths::default()
        };
        for round in ["one ", "two "] {
            let (mut streams, io) = open(&paths).await.unwrap();
            File::from(io.stdout).write_all(round.as_bytes()).unwrap();
            File::from(io.stderr).write_all(b"err ").unwrap();
            // What is there at the end is in the file before anybody hears of the end.
            assert!(streams.end().is_none());
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "one err two err ");
    });
}

#[test]
fn a_cri_log_tells_the_streams_apart() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let address = format!("cri://{}", file.display());
        let paths = Paths {
            stdout: address.clone(),
            stderr: address,
            ..Paths::default()
        };
        let (mut streams, io) = open(&paths).await.unwrap();
        File::from(io.stdout).write_all(b"good\ncut").unwrap();
        File::from(io.stderr).write_all(b"bad\n").unwrap();
        assert!(streams.end().is_none());
        for hub in streams.hubs() {
            hub.finish(soon()).await;
        }
        let text = std::fs::read_to_string(file).unwrap();
        let ends: Vec<_> = text
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(ends, ["stdout F good", "stdout P cut", "stderr F bad"]);
    });
}

#[test]
fn held_streams_are_pipes_whose_input_ends_when_that_is_said() {
    block_on(async {
        let paths = Paths {
            stdin: "attach://".into(),
            stdout: "attach://".into(),
            stderr: "attach://".into(),
            terminal: false,
        };
        let (mut streams, io) = open(&paths).await.unwrap();
        let tags: Vec<_> = streams.hubs().iter().map(|hub| hub.tag()).collect();
        assert_eq!(tags, [Tag::Stdout, Tag::Stderr]);
        let mut client = File::from(streams.stdin().unwrap().unwrap());
        client.write_all(b"typed").unwrap();
        drop(client);
        let mut stdin = File::from(io.stdin);
        let mut typed = [0; 5];
        stdin.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"typed");
        // A client that detaches is not the end of input.
        assert!(!sys::pipe::is_readable(&stdin));
        streams.close_stdin();
        assert_eq!(stdin.read(&mut typed).unwrap(), 0);
    });
}

#[test]
fn what_is_no_fifo_is_refused() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let bad = [
            (dir.path().to_owned(), types::Code::InvalidArgument),
            (socket, types::Code::Unknown),
            (dir.path().join("absent"), types::Code::NotFound),
        ];
        for (path, code) in bad {
            let address = path.display().to_string();
            for paths in [
                Paths {
                    stdout: address.clone(),
                    ..Paths::default()
                },
                Paths {
                    stdin: address,
                    ..Paths::default()
                },
            ] {
                let error = open(&paths).await.map(drop).unwrap_err();
                let named = error.to_string().contains(&path.display().to_string());
                assert!(
                    named && (error.is(code) || !error.is(types::Code::NotFound)),
                    "{error}"
                );
            }
        }
    });
}

#[test]
fn a_logger_gets_the_output_and_its_environment() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (script, result) = (dir.path().join("logger"), dir.path().join("result"));
        let body = "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\" > $2\n\
                    /bin/cat <&3 >> $2\n/bin/cat <&4 >> $2\n";
        program(&script, body);
        let uri = format!("binary://{}?out={}", script.display(), result.display());
        let reap = Arc::new(Reap::default());
        let options = Options::default();
        let owner = Owner {
            reap: &reap,
            options: &options,
            namespace: "ns",
            id: "c1",
        };
        let paths = Paths {
            stdout: uri.clone(),
            stderr: uri,
            ..Paths::default()
        };
        let (mut streams, io) = Streams::open(&paths, owner).await.unwrap();
        File::from(io.stdout).write_all(b"to stdout\n").unwrap();
        File::from(io.stderr).write_all(b"to stderr\n").unwrap();
        let logger = streams.end().unwrap();
        let rounds = tokio::spawn(async move {
            loop {
                reap.round();
                sleep(Duration::from_millis(5)).await;
            }
        });
        logger.stop(soon()).await;
        rounds.abort();
        let want = format!("c1 ns out {}\nto stdout\nto stderr\n", result.display());
        assert_eq!(std::fs::read_to_string(result).unwrap(), want);
    });
}

#[test]
fn a_logger_that_dies_at_once_is_an_error() {
    block_on(async {
        let uri = "binary:///bin/false".to_owned();
        let paths = Paths {
            stdout: uri.clone(),
            stderr: uri,
            ..Paths::default()
        };
        let error = open(&paths).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("/bin/false"), "{error}");
    });
}

#[test]
fn a_process_that_reads_no_input_has_none_for_clients() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("in");
        Fifo::make(&fifo, 0o600).unwrap();
        for stdin in ["attach://".to_owned(), fifo.display().to_string()] {
            let paths = Paths {
                stdin,
                ..Paths::default()
            };
            let (mut streams, io) = open(&paths).await.unwrap();
            assert!(streams.stdin().unwrap().is_some());
            drop(io);
            until("nobody reads", || streams.stdin().unwrap().is_none());
        }
    });
}

#[test]
fn a_client_that_goes_is_not_the_end_of_input() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::make(&dir.path().join("in"), 0o600).unwrap();
        let client = fifo.open_nonblocking(End::Both).unwrap();
        let paths = Paths {
            stdin: dir.path().join("in").display().to_string(),
            ..Paths::default()
        };
        let (mut streams, io) = open(&paths).await.unwrap();
        let attached = streams.stdin().unwrap().unwrap();
        drop((client, attached));
        assert!(sys::pipe::has_writer(&io.stdin));
        streams.close_stdin();
        until("the end comes", || !sys::pipe::has_writer(&io.stdin));
    });
}

#[test]
fn one_fifo_for_both_outputs_is_one_output_for_clients() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        Fifo::make(&path, 0o600).unwrap();
        let paths = Paths {
            stdout: path.display().to_string(),
            stderr: path.display().to_string(),
            ..Paths::default()
        };
        let (streams, _io) = open(&paths).await.unwrap();
        // The path is not looked at again.
        std::fs::remove_file(&path).unwrap();
        let hubs = streams.fifos().unwrap();
        assert_eq!(hubs.len(), 1);
        assert!(!hubs[0].is_taken());
    });
}
