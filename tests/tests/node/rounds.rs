//! Rounds in which a part of the node is killed at a random moment of pods' lives: nothing is left, and the node goes on.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use tests::node::{Cocoon, Containerd, Pod, PodSpec, Process, Snapshotter};
use tokio::sync::watch;
use tonic::Status;

use crate::ground::{Ground, is_full};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_killed_whenever_leaves_nothing_and_the_node_goes_on() {
    rounds(Containerd::V1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_killed_whenever_the_newer_containerd_goes_on_as_well() {
    if !is_full() {
        return eprintln!("skipped: it takes minutes; next: set COCOON_TEST_FULL=1");
    }
    rounds(Containerd::V2).await;
}

async fn rounds(version: Containerd) {
    let wanted = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = wanted("COCOON_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = wanted("COCOON_TEST_ROUNDS").unwrap_or(if is_full() { 100 } else { 12 });
    eprintln!("these rounds again: COCOON_TEST_SEED={seed} COCOON_TEST_ROUNDS={count}");
    let cocoon = Cocoon::new().with_snapshotter();
    let Some(ground) = Ground::on(version, "debug", &cocoon).await else { return };
    let snapshotter = Snapshotter::start(&ground.node);
    let mut rng = Rng::with_seed(seed);
    let lengths = undisturbed(&ground).await;

    let mut report = Report::default();
    for (number, round) in plan(&mut rng, count as usize).into_iter().enumerate() {
        let begun = Instant::now();
        let name = format!("round-{number}");
        let hit = Game { ground: &ground, snapshotter: &snapshotter, round, lengths }.play(&name, &mut rng).await;
        eprintln!("{version:?} {name}: {round}: {hit}, {:.1} s", begun.elapsed().as_secs_f64());
        report.note(round, &hit);
    }

    undisturbed(&ground).await;
    eprintln!("{version:?}: {report}");
    report.expect_each_kind(count as usize);
}

/// What is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Victim {
    Machine,
    Shim,
    Snapshotter,
    Containerd,
    Registry,
}

/// What a kubelet asks for in a pod's life, in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Run,
    Pull,
    Create,
    Start,
    Exec,
    Stop,
    Remove,
}

/// What happens in a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    victim: Victim,
    stage: Stage,
    /// The part of the stage's usual length after which it happens.
    moment: f64,
    /// Pods that live at the same time.
    pods: usize,
}

/// Rounds of which any 35 in a row, counted from the first, have each victim in each stage.
fn plan(rng: &mut Rng, count: usize) -> Vec<Round> {
    let (mut victims, mut stages) = (VICTIMS, STAGES);
    let mut rounds = Vec::new();
    for number in 0..count {
        if number % (victims.len() * stages.len()) == 0 {
            rng.shuffle(&mut victims);
            rng.shuffle(&mut stages);
        }
        // 5 and 7 have no common divisor.
        let (victim, stage) = (victims[number % victims.len()], stages[number % stages.len()]);
        rounds.push(Round { victim, stage, moment: rng.f64(), pods: rng.usize(1..=3) });
    }
    rounds
}

/// The pods of a round and who kills.
struct Game<'a> {
    ground: &'a Ground,
    snapshotter: &'a Snapshotter<'a>,
    round: Round,
    lengths: Lengths,
}

/// What a round came to.
struct Hit {
    /// What was killed: nothing, where its time was over already.
    killed: Option<Process>,
    completed: usize,
    /// What a kubelet was refused before it had what it wanted.
    refusals: Vec<String>,
}

/// How a pod's life ended.
enum Outcome {
    Completed,
    Died,
}

impl<'a> Game<'a> {
    async fn play(&self, name: &str, rng: &mut Rng) -> Hit {
        let (reached, stage) = watch::channel(None);
        let done = watch::Sender::new(false);
        let lives: Vec<_> = (0..self.round.pods)
            .map(|number| {
                let signals = (number == 0).then_some((&reached, done.subscribe()));
                Life::new(self, format!("{name}-{number}"), signals)
            })
            .collect();
        let over = AtomicBool::new(false);
        let kill = async {
            let killed = self.kill(stage, &over, rng).await;
            done.send_replace(true);
            killed
        };
        let (killed, lives) = tokio::join!(kill, async {
            let lives = join_all(lives.into_iter().map(Life::live)).await;
            over.store(true, Ordering::Relaxed);
            lives
        });

        let mut hit = Hit { killed, completed: 0, refusals: Vec::new() };
        for (pods, outcome, refusals) in lives {
            hit.refusals.extend(refusals);
            match outcome {
                Outcome::Completed => hit.completed += 1,
                // Nobody's death is another's.
                Outcome::Died => {
                    let command = hit.killed.as_ref().map(|process| process.command.clone()).unwrap_or_default();
                    assert!(
                        matches!(self.round.victim, Victim::Machine | Victim::Shim)
                            && pods.iter().any(|id| command.contains(id)),
                        "{}: a pod died that was not killed: {pods:?}, but {command}: {:?}",
                        self.round,
                        hit.refusals
                    );
                }
            }
        }
        self.sweep().await;
        let left = self.ground.node.leftovers().await;
        assert_eq!(left, [""; 0], "{}: {hit}: {:?}", self.round, hit.refusals);
        hit
    }

    /// Waits for the stage and the moment in it, kills, and starts again what a service manager would.
    async fn kill(
        &self,
        mut stage: watch::Receiver<Option<Stage>>,
        over: &AtomicBool,
        rng: &mut Rng,
    ) -> Option<Process> {
        let _ = stage.wait_for(|stage| *stage == Some(self.round.stage)).await;
        // The one thing here that is up to chance and not to an event.
        tokio::time::sleep(self.lengths.of(self.round.stage).mul_f64(self.round.moment)).await;
        let node = &self.ground.node;
        let service = |name: &str, pid| Some(Process { pid, command: name.to_owned() });
        match self.round.victim {
            Victim::Containerd => {
                let pid = node.containerd_pid();
                node.crash_containerd().await;
                service("containerd", pid)
            }
            Victim::Snapshotter => {
                let pid = self.snapshotter.pid();
                self.snapshotter.crash_and_restart();
                service("snapshotter", pid)
            }
            Victim::Registry => {
                self.ground.registry.crash_and_restart();
                service("registry", 0)
            }
            Victim::Machine | Victim::Shim => loop {
                let program =
                    if self.round.victim == Victim::Machine { "qemu-system" } else { "shim-cocoon-v2 -namespace" };
                let mut found = node.processes(program);
                if !found.is_empty() {
                    let victim = found.swap_remove(rng.usize(..found.len()));
                    node.kill(&victim).await;
                    return Some(victim);
                }
                // While a pod is made its processes may be yet to come; at its end they may be gone.
                if self.round.stage != Stage::Run || over.load(Ordering::Relaxed) {
                    return None;
                }
                tokio::time::sleep(PAUSE).await;
            },
        }
    }

    /// Removes what a kubelet finds that it did not know of, such as what it was never told the id of.
    async fn sweep(&self) {
        let node = &self.ground.node;
        let mut refusals = Vec::new();
        until("the node is swept", &mut refusals, async || {
            for id in node.try_pods().await? {
                node.stop_pod(&id).await?;
                node.remove_pod(&id).await?;
            }
            Ok(())
        })
        .await;
        node.remove_pod_groups();
        if self.round.victim == Victim::Containerd {
            node.expire_leases();
        }
    }
}

/// A pod as a kubelet makes it, which tries again what it is refused.
struct Life<'a> {
    game: &'a Game<'a>,
    spec: PodSpec<'a>,
    stage: Option<(&'a watch::Sender<Option<Stage>>, watch::Receiver<bool>)>,
    refusals: Vec<String>,
    /// The ids that it had.
    ids: Vec<String>,
}

impl<'a> Life<'a> {
    fn new(
        game: &'a Game<'a>,
        name: String,
        stage: Option<(&'a watch::Sender<Option<Stage>>, watch::Receiver<bool>)>,
    ) -> Self {
        Self { game, spec: game.ground.pod(&name), stage, refusals: Vec::new(), ids: Vec::new() }
    }

    async fn live(mut self) -> (Vec<String>, Outcome, Vec<String>) {
        let outcome = self.all_stages().await;
        // A life that ended early passes the stages that it did not reach.
        if let Some((reached, _)) = &self.stage {
            reached.send_replace(Some(self.game.round.stage));
        }
        (self.ids, outcome, self.refusals)
    }

    async fn all_stages(&mut self) -> Outcome {
        let ground = self.game.ground;
        self.enter(Stage::Run);
        let mut attempt = 0;
        let spec = self.spec.clone();
        let pod = until("the pod runs", &mut self.refusals, async || {
            attempt += 1;
            spec.clone().attempt(attempt).try_run().await
        })
        .await;
        self.ids.push(pod.id().to_owned());
        self.leave(Stage::Run).await;

        let outcome = self.inside(&pod).await;
        if matches!(outcome, Outcome::Completed) && self.game.round.stage == Stage::Remove && self.stage.is_some() {
            // One that runs can be removed as well.
        } else {
            self.enter(Stage::Stop);
            until("the pod is stopped", &mut self.refusals, async || pod.stop().await).await;
            self.leave(Stage::Stop).await;
        }
        self.enter(Stage::Remove);
        until("the pod is removed", &mut self.refusals, async || ground.node.remove_pod(pod.id()).await).await;
        self.leave(Stage::Remove).await;
        outcome
    }

    /// What happens while the pod runs, or until it dies.
    async fn inside(&mut self, pod: &Pod<'_>) -> Outcome {
        let ground = self.game.ground;
        let settings = pod.volume("kubernetes.io~configmap", "settings");
        std::fs::write(settings.join("key"), "value").unwrap();
        let scratch = pod.volume("kubernetes.io~empty-dir", "scratch");

        self.enter(Stage::Pull);
        until("the image is pulled", &mut self.refusals, async || {
            ground.node.try_pull(&ground.image, "cocoon", None).await
        })
        .await;
        self.leave(Stage::Pull).await;

        let (mut attempt, begun) = (0, Instant::now());
        let app = loop {
            self.enter(Stage::Create);
            let container = pod.container("app", &ground.image).mount(&settings, "/settings", true);
            let created = container.mount(&scratch, "/scratch", false).attempt(attempt).create().await;
            self.leave(Stage::Create).await;
            let refused = match created {
                Ok(container) => {
                    self.enter(Stage::Start);
                    let started = container.start().await;
                    self.leave(Stage::Start).await;
                    match started {
                        Ok(()) => break container,
                        Err(status) => {
                            // What can't be removed now goes with the pod.
                            let _ = container.remove().await;
                            status
                        }
                    }
                }
                Err(status) => status,
            };
            if self.is_dead_after(pod, refused).await {
                return Outcome::Died;
            }
            attempt += 1;
            assert!(begun.elapsed() < LIMIT, "no container starts: {:?}", self.refusals);
        };

        self.enter(Stage::Exec);
        let begun = Instant::now();
        loop {
            match app.try_exec(&["cat", "/settings/key"]).await {
                Ok(executed) if executed.code == 0 => {
                    assert_eq!(executed.stdout, "value");
                    break;
                }
                Ok(executed) => self.refusals.push(format!("{executed:?}")),
                Err(status) => {
                    if self.is_dead_after(pod, status).await {
                        return Outcome::Died;
                    }
                }
            }
            assert!(begun.elapsed() < LIMIT, "no command runs: {:?}", self.refusals);
        }
        self.leave(Stage::Exec).await;
        Outcome::Completed
    }

    /// Whether a pod that was refused something has ended.
    async fn is_dead_after(&mut self, pod: &Pod<'_>, refusal: Status) -> bool {
        self.refusals.push(refusal.message().to_owned());
        tokio::time::sleep(PAUSE).await;
        let mut refusals = std::mem::take(&mut self.refusals);
        let status = until("the pod has a status", &mut refusals, async || pod.status().await).await;
        self.refusals = refusals;
        status.state() != cri::PodSandboxState::SandboxReady
    }

    fn enter(&self, stage: Stage) {
        if let Some((reached, _)) = &self.stage {
            reached.send_replace(Some(stage));
        }
    }

    /// The kill that is meant for this stage comes before the next one.
    async fn leave(&mut self, stage: Stage) {
        if let Some((_, killed)) = &mut self.stage
            && stage == self.game.round.stage
        {
            let _ = killed.wait_for(|killed| *killed).await;
        }
    }
}

/// Asks until it is answered, as a kubelet does.
async fn until<T>(what: &str, refusals: &mut Vec<String>, mut ask: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(status) => refusals.push(status.message().to_owned()),
        }
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}: {refusals:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// How long the stages of a pod's life take when nothing happens.
#[derive(Clone, Copy, Debug)]
struct Lengths([Duration; STAGES.len()]);

impl Lengths {
    fn of(&self, stage: Stage) -> Duration {
        self.0[stage as usize]
    }
}

/// A pod that nobody disturbs, after which nothing is left.
async fn undisturbed(ground: &Ground) -> Lengths {
    let node = &ground.node;
    let mut clock = Instant::now();
    let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
    let pod = ground.pod("undisturbed").run().await;
    let run = lap();
    node.try_pull(&ground.image, "cocoon", None).await.unwrap();
    let pull = lap();
    let app = pod.container("app", &ground.image).create().await.unwrap();
    let create = lap();
    app.start().await.unwrap();
    let start = lap();
    assert_eq!(app.exec(&["echo", "fine"]).await.stdout, "fine\n");
    let exec = lap();
    pod.stop().await.unwrap();
    let stop = lap();
    pod.remove().await;
    let remove = lap();
    ground.expect_clean().await;
    // Removed while it runs, it is stopped first.
    Lengths([run, pull, create, start, exec, stop, stop + remove])
}

/// What was killed how often in which stage.
#[derive(Default)]
struct Report {
    kills: Vec<(Victim, Stage)>,
    missed: usize,
    completed: usize,
    refusals: usize,
}

impl Report {
    fn note(&mut self, round: Round, hit: &Hit) {
        match hit.killed {
            Some(_) => self.kills.push((round.victim, round.stage)),
            None => self.missed += 1,
        }
        self.completed += hit.completed;
        self.refusals += hit.refusals.len();
    }

    /// Expects that each was killed in each stage, if there were enough rounds for that.
    fn expect_each_kind(&self, rounds: usize) {
        let all = VICTIMS.into_iter().flat_map(|victim| STAGES.map(|stage| (victim, stage)));
        let never: Vec<_> = all.filter(|kind| !self.kills.contains(kind)).collect();
        assert!(rounds < 2 * VICTIMS.len() * STAGES.len() || never.is_empty(), "never killed: {never:?}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, missed, completed, refusals } = self;
        write!(f, "{} kills, {missed} too late; {completed} pods whole, {refusals} refusals;", kills.len())?;
        for victim in VICTIMS {
            let count = |stage| kills.iter().filter(|kill| **kill == (victim, stage)).count();
            write!(f, " {victim:?} {:?}", STAGES.map(count))?;
        }
        write!(f, " in {STAGES:?}")
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { victim, stage, moment, pods } = self;
        write!(f, "{victim:?} killed in {stage:?} + {moment:.2}, {pods} pods")
    }
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let killed = self.killed.as_ref().map_or("nothing", |_| "it");
        write!(f, "{killed} killed, {} whole, {} refusals", self.completed, self.refusals.len())
    }
}

const VICTIMS: [Victim; 5] = [Victim::Machine, Victim::Shim, Victim::Snapshotter, Victim::Containerd, Victim::Registry];
const STAGES: [Stage; 7] =
    [Stage::Run, Stage::Pull, Stage::Create, Stage::Start, Stage::Exec, Stage::Stop, Stage::Remove];
/// Between two attempts, which no event tells apart.
const PAUSE: Duration = Duration::from_millis(100);
/// For what is asked for again and again.
const LIMIT: Duration = Duration::from_secs(120);
