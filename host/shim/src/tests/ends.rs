//! Ends: of what never started, of what nobody waits for, of outputs, connections and machines.

use std::future::ready;
use std::net::Shutdown;

use tokio::io::AsyncReadExt as _;

use super::*;
use crate::Error;
use crate::io::{DRAIN, LEFT};

#[tokio::test]
async fn an_exec_that_can_t_be_started_is_over_and_is_no_failure_of_the_pod() {
    let lab = Lab::with_pod().await;
    lab.create(lab.container("web", json!([]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.agent.deny("ExecProcess");
    lab.exec("web", "e").await.unwrap();
    assert_eq!(code(lab.start("web", "e").await.unwrap_err()).0, ttrpc::Code::PERMISSION_DENIED);

    assert_eq!(lab.wait("web", "e").await.unwrap(), 255);
    assert_eq!(code(lab.start("web", "e").await.unwrap_err()).0, ttrpc::Code::FAILED_PRECONDITION);
    assert_eq!(lab.delete("web", "e").await.unwrap(), 255);
    assert_eq!(Failures::at(&lab.path("failures")).all().unwrap(), []);
    assert_eq!(lab.shim.journal.state().troubles[0].request, "start");

    lab.create(lab.container("db", json!([]))).await.unwrap();
    lab.agent.deny("StartContainer");
    lab.start("db", "").await.unwrap_err();
    assert_eq!(Failures::at(&lab.path("failures")).all().unwrap().len(), 1);
}

#[tokio::test]
async fn whoever_waits_for_an_exec_that_is_removed_hears_of_its_end() {
    let lab = Lab::with_pod().await;
    lab.create(lab.container("web", json!([]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.exec("web", "e").await.unwrap();
    let (_, process) = lab.shim.pod().unwrap().process("web", "e").unwrap();
    lab.delete("web", "e").await.unwrap();
    assert_eq!(soon(process.ended()).await.status, 0);
}

#[tokio::test]
async fn starts_and_removals_go_on_when_containerd_has_lost_patience() {
    let mut lab = Lab::with_pod().await;
    let pod = lab.shim.pod().unwrap();
    lab.create(lab.container("web", json!([]))).await.unwrap();
    assert_eq!(lab.containerd.next().await, "/tasks/create web");
    lab.agent.hold_up("web");
    tokio::select! {
        biased;
        _ = pod.start("web", "") => panic!("it is held up"),
        () = ready(()) => {}
    }
    lab.agent.let_go("web");
    assert_eq!(lab.containerd.next().await, "/tasks/start web");

    lab.agent.exit("web", "", 1);
    assert_eq!(lab.containerd.next().await, "/tasks/exit web 1");
    lab.agent.hold_up("removal of web");
    tokio::select! {
        biased;
        _ = pod.delete("web", "") => panic!("it is held up"),
        () = ready(()) => {}
    }
    lab.agent.let_go("removal of web");
    assert_eq!(lab.containerd.next().await, "/tasks/delete web");
}

#[tokio::test]
async fn a_container_that_is_created_while_the_machine_dies_ends_with_it() {
    let mut lab = Lab::with_pod().await;
    lab.agent.hold_up("slow");
    let (request, task) = (lab.container("slow", json!([])), lab.task.clone());
    let slow = tokio::spawn(async move { task.create(Context::default(), &request).await });
    lab.asked_for("slow").await;
    lab.boot.crash("QEMU ended with signal 9");
    assert_eq!(lab.containerd.next().await, "/tasks/exit pod-1 137");

    lab.agent.let_go("slow");
    soon(slow).await.unwrap().unwrap();

    assert_eq!(lab.wait("slow", "").await.unwrap(), 137);
    assert_eq!(lab.containerd.next().await, "/tasks/create slow");
    assert_eq!(lab.containerd.next().await, "/tasks/exit slow 137");
}

#[tokio::test]
async fn a_pod_has_ended_when_its_machine_has() {
    let lab = Lab::with_pod().await;
    let (_, process) = lab.shim.pod().unwrap().process(POD, "").unwrap();
    lab.agent.exit(POD, "", 0);
    assert_eq!(soon(process.ended()).await.status, 0);
    assert_eq!(*lab.boot.machines.borrow(), (1, 1));
}

#[tokio::test]
async fn a_machine_goes_on_record_whose_agent_is_gone_and_one_whose_agent_answers_goes_on() {
    let lab = Lab::with_pod().await;
    let pod = lab.shim.pod().unwrap();
    let closed = Error::Closed { request: "WaitProcess" };
    assert!(soon(pod.guest().outlives(&closed)).await);
    assert!(!soon(pod.guest().outlives(&Error::State(String::new()))).await);

    lab.boot.line.borrow().as_ref().unwrap().shutdown(Shutdown::Both).unwrap();

    assert!(!soon(pod.guest().outlives(&closed)).await);
    assert_eq!(lab.wait(POD, "").await.unwrap(), 137);
    assert_eq!(*lab.boot.machines.borrow(), (1, 1));
    let recorded = Failures::at(&lab.path("failures")).all().unwrap();
    let [failure] = &recorded[..] else { panic!("{recorded:?}") };
    assert!(failure.trouble.error.contains("the guest's agent closed the connection"), "{failure:?}");
}

#[tokio::test]
async fn a_slow_reader_gets_all_that_a_process_said() {
    let lab = Lab::with_pod().await;
    let said = 12 * FIFO;
    let mut stdout = lab.ended_after_saying(said).await;
    let mut piece = vec![0; FIFO];
    soon(stdout.read_exact(&mut piece)).await.unwrap();
    // It takes longer for the next than a guest might.
    tokio::time::sleep(DRAIN + Duration::from_millis(200)).await;

    let mut rest = Vec::new();
    soon(stdout.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(piece.len() + rest.len(), said);
}

#[tokio::test]
async fn output_after_an_end_is_bounded() {
    let lab = Lab::with_pod().await;
    let mut stdout = lab.ended_after_saying(2 * LEFT).await;
    let mut all = Vec::new();
    soon(stdout.read_to_end(&mut all)).await.unwrap();
    assert!((LEFT..LEFT + 3 * FIFO).contains(&all.len()), "{}", all.len());
}

impl Lab {
    /// The output of a container that has ended after saying more than a fifo takes.
    async fn ended_after_saying(&self, length: usize) -> pipe::Receiver {
        let stdout = self.fifo("stdout");
        let receiver = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        self.create(CreateTaskRequest { stdout, ..self.container("web", json!([])) }).await.unwrap();
        self.agent.say("web", "", &"x".repeat(length));
        self.start("web", "").await.unwrap();
        soon(self.agent.has_kept("web", length - FIFO)).await;
        self.agent.exit("web", "", 0);
        assert_eq!(self.wait("web", "").await.unwrap(), 0);
        receiver
    }
}

/// What a fifo takes.
const FIFO: usize = 64 << 10;
