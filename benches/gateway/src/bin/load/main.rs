//! The load: `load --url http://127.0.0.1:9001/v1/chat/completions …`
//!
//! Closed loop with `--conns N` (each connection asks again as soon as it has its answer), open loop with `--rate N` (requests
//! are due at fixed times, and a latency counts from when its request was due, so that a stall cannot hide). Every answer is
//! checked. `--models N` and `--keys FILE` draw each request's model (`bench-00000` to N-1) and caller's key from a set.
//! `--reconnect`, `--hangup` and `--faults` give the closed loop's requests, in percent, a new connection, a caller that leaves
//! after the first bytes of the answer, and a fault of the provider. With `--pid` the processor time and memory of that process and its descendants are in the report, which is one line of
//! JSON on stdout.

mod answer;
mod process;
mod request;

use answer::{Answer, Expected};
use request::{Dice, Fault, Request};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An answer that takes longer is an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Threads of the open loop: as many requests can be in flight before one has to wait (and the wait then counts).
const OPEN_LOOP_THREADS: usize = 32;
/// The open loop sleeps until this long before a request is due and spins the rest: a sleep ends up to 60 µs late.
const SPIN: Duration = Duration::from_micros(150);
/// How much of a processor may go to that.
const SPIN_SHARE_MAX: f64 = 0.2;
/// The connection ended before the answer did.
const CUT_OFF: &str = "cut off";
/// How often memory is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(100);

struct Options {
    address: SocketAddr,
    path: String,
    headers: String,
    model: String,
    body_kb: usize,
    expected: Expected,
    pause_ms: u64,
    conns: usize,
    rate: f64,
    time: Duration,
    warmup: Duration,
    /// One answer a connection, all begun at once: the memory of open streams.
    once: bool,
    /// How many models requests are drawn from; 0: always `model`.
    models: usize,
    /// The callers' keys requests are drawn from, all of one length.
    keys: Vec<String>,
    churn: Churn,
    pid: Option<u32>,
}

/// Of a hundred requests, how many…
#[derive(Clone, Copy, Default)]
struct Churn {
    /// …come on a connection of their own,
    reconnect: u64,
    /// …are left by their caller once the answer begins,
    hangup: u64,
    /// …meet a provider's fault.
    faults: u64,
}

fn usage(what: &str) -> ! {
    eprintln!(
        "load: {what}\nusage: load --url URL (--conns N | --rate N) [--header 'name: value']… [--model M] [--body-kb N] [--stream] [--usage]\n            [--events N] [--pause-ms N] [--secs N] [--warmup N] [--once] [--pid PID]\n            [--models N] [--keys FILE] [--reconnect %] [--hangup %] [--faults %]"
    );
    std::process::exit(2)
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            path: String::new(),
            headers: String::new(),
            model: "gpt-4o-mini".into(),
            body_kb: 1,
            expected: Expected::Whole,
            pause_ms: 0,
            conns: 0,
            rate: 0.0,
            time: Duration::from_secs(3),
            warmup: Duration::from_secs(1),
            once: false,
            models: 0,
            keys: Vec::new(),
            churn: Churn::default(),
            pid: None,
        };
        let (mut stream, mut usage_asked, mut events) = (false, false, 100);
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| usage(&format!("{name} needs a value")));
            fn number<T: std::str::FromStr>(text: String) -> T {
                text.parse().unwrap_or_else(|_| usage(&format!("{text:?} is not a number here")))
            }
            match name.as_str() {
                "--url" => {
                    let url = value();
                    let (address, path) = url
                        .strip_prefix("http://")
                        .and_then(|rest| rest.split_once('/'))
                        .unwrap_or_else(|| usage("--url http://IP:PORT/PATH"));
                    options.address = address.parse().unwrap_or_else(|_| usage("--url http://IP:PORT/PATH"));
                    options.path = format!("/{path}");
                }
                "--header" => options.headers += &format!("{}\r\n", value()),
                "--model" => options.model = value(),
                "--body-kb" => options.body_kb = number(value()),
                "--stream" => stream = true,
                "--usage" => usage_asked = true,
                "--events" => events = number(value()),
                "--pause-ms" => options.pause_ms = number(value()),
                "--conns" => options.conns = number(value()),
                "--rate" => options.rate = number(value()),
                "--secs" => options.time = Duration::from_secs_f64(number(value())),
                "--warmup" => options.warmup = Duration::from_secs_f64(number(value())),
                "--once" => options.once = true,
                "--models" => {
                    options.models = number(value());
                    options.model = request::model(0);
                }
                "--keys" => {
                    let file = value();
                    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| usage(&format!("{file}: {error}")));
                    options.keys = text.lines().map(str::to_owned).collect();
                    let first = options.keys.first().unwrap_or_else(|| usage(&format!("{file} is empty")));
                    if options.keys.iter().any(|key| key.len() != first.len()) {
                        usage(&format!("{file}: keys of one length"));
                    }
                    options.headers += &format!("authorization: Bearer {first}\r\n");
                }
                "--reconnect" => options.churn.reconnect = number(value()),
                "--hangup" => options.churn.hangup = number(value()),
                "--faults" => options.churn.faults = number(value()),
                "--pid" => options.pid = Some(number(value())),
                _ => usage(&format!("what is {name}?")),
            }
        }
        if options.path.is_empty() || (options.conns > 0) == (options.rate > 0.0) {
            usage("--url and either --conns or --rate");
        }
        if stream {
            options.expected = Expected::Stream { events, usage: usage_asked };
        }
        options
    }
}

/// What one worker saw.
#[derive(Default)]
struct Seen {
    latency_us: Vec<f64>,
    first_event_us: Vec<f64>,
    transit_us: Vec<f64>,
    errors: Vec<String>,
    /// Answers left unread on purpose.
    hangups: usize,
    /// Faults of the provider that the caller saw, as it should: an error, or an answer that visibly broke off.
    faults_shown: usize,
}

impl Seen {
    fn take(&mut self, from: Instant, answer: &Answer, expected: Expected) {
        self.latency_us.push(from.elapsed().as_nanos() as f64 / 1e3);
        self.first_event_us.extend(answer.times.first_event.map(|at| (at - from).as_nanos() as f64 / 1e3));
        self.transit_us.extend(answer.times.transit_us.iter().map(|us| f64::from(*us)));
        self.errors.extend(answer.check(expected).err());
    }

    fn merge(&mut self, other: Seen) {
        self.latency_us.extend(other.latency_us);
        self.first_event_us.extend(other.first_event_us);
        self.transit_us.extend(other.transit_us);
        self.errors.extend(other.errors);
        self.hangups += other.hangups;
        self.faults_shown += other.faults_shown;
    }
}

/// Streams that have shown their first event, for the memory of open streams.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// `leaves`: the caller is gone after the first bytes, and the answer is not whole.
async fn ask(
    socket: &mut Option<tokio::net::TcpStream>,
    options: &Options,
    request: &[u8],
    buffer: &mut [u8],
    leaves: bool,
) -> Result<Answer, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = match socket {
        Some(stream) => stream,
        None => {
            let stream = tokio::net::TcpStream::connect(options.address).await.map_err(text)?;
            stream.set_nodelay(true).map_err(text)?;
            socket.insert(stream)
        }
    };
    stream.write_all(request).await.map_err(text)?;
    let mut answer = Answer::new();
    let mut is_open = false;
    while !answer.is_done() {
        match stream.read(buffer).await.map_err(text)? {
            0 => return Err(CUT_OFF.into()),
            count => answer.feed(&buffer[..count])?,
        }
        if leaves {
            break;
        }
        if !is_open && answer.times.first_event.is_some() {
            is_open = true;
            OPEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(answer)
}

async fn worker(options: Arc<Options>, request: Request, index: usize, until: Instant, after: Duration) -> Seen {
    tokio::time::sleep(after).await;
    let mut seen = Seen::default();
    let mut socket = None;
    let mut dice = Dice::new(index);
    let (mut request, churn) = (request, options.churn);
    // The memory scenario has thousands of these.
    let mut buffer = vec![0; if options.once { 4 << 10 } else { 32 << 10 }];
    while Instant::now() < until {
        let fault = dice.percent(churn.faults).then(|| Fault::ALL[dice.below(Fault::ALL.len())]);
        let leaves = dice.percent(churn.hangup);
        if dice.percent(churn.reconnect) {
            socket = None;
        }
        request.draw(&options, &mut dice, fault);
        let from = Instant::now();
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(&mut socket, &options, request.bytes(), &mut buffer, leaves)).await;
        match asked.unwrap_or_else(|_| Err("no whole answer in time".into())) {
            Ok(_) if leaves => {
                socket = None;
                seen.hangups += 1;
            }
            // Another provider's answer, whole and right, or a fault that shows: never an answer that looks whole and is not.
            Ok(answer) if fault.is_some() && answer.shows_fault() => {
                socket = None;
                seen.faults_shown += 1;
            }
            Ok(answer) => {
                if !answer.keeps_connection() {
                    socket = None;
                }
                seen.take(from, &answer, options.expected);
            }
            Err(error) => {
                socket = None;
                if fault.is_some() && error == CUT_OFF {
                    seen.faults_shown += 1;
                } else {
                    seen.errors.push(error);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        if options.once {
            break;
        }
    }
    seen
}

fn closed_loop(options: &Arc<Options>, request: &Request, time: Duration) -> Seen {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { usage("no runtime") };
    runtime.block_on(async {
        let until = Instant::now() + time;
        let mut workers = tokio::task::JoinSet::new();
        for index in 0..options.conns {
            // Paced streams begin spread over one pause: in step they would share the gateway's wake-ups.
            let after = Duration::from_millis(options.pause_ms * index as u64 / options.conns as u64);
            workers.spawn(worker(options.clone(), request.clone(), index, until, after));
        }
        let mut all = Seen::default();
        while let Some(seen) = workers.join_next().await {
            match seen {
                Ok(seen) => all.merge(seen),
                Err(error) => all.errors.push(error.to_string()),
            }
        }
        all
    })
}

fn ask_blocking(socket: &mut Option<std::net::TcpStream>, options: &Options, request: &[u8], buffer: &mut [u8]) -> Result<Answer, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = match socket {
        Some(stream) => stream,
        None => {
            let stream = std::net::TcpStream::connect(options.address).map_err(text)?;
            stream.set_nodelay(true).map_err(text)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(text)?;
            socket.insert(stream)
        }
    };
    stream.write_all(request).map_err(text)?;
    let mut answer = Answer::new();
    while !answer.is_done() {
        match stream.read(buffer).map_err(text)? {
            0 => return Err(CUT_OFF.into()),
            count => answer.feed(&buffer[..count])?,
        }
    }
    Ok(answer)
}

fn open_loop(options: &Arc<Options>, request: &Request, time: Duration) -> Seen {
    let begun = Instant::now() + Duration::from_millis(5);
    let count = (options.rate * time.as_secs_f64()) as u64;
    let next = Arc::new(AtomicU64::new(0));
    // At a high rate spinning would take the processor that mock and load share; sleeping alone is a little late each time.
    let spin = if SPIN.as_secs_f64() * options.rate < SPIN_SHARE_MAX { SPIN } else { Duration::ZERO };
    let threads: Vec<_> = (0..OPEN_LOOP_THREADS)
        .map(|index| {
            let (options, mut request, next) = (options.clone(), request.clone(), next.clone());
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                let mut socket = None;
                let mut buffer = vec![0; 32 << 10];
                let mut dice = Dice::new(index);
                loop {
                    request.draw(&options, &mut dice, None);
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return seen;
                    }
                    let due = begun + Duration::from_secs_f64(index as f64 / options.rate);
                    std::thread::sleep((due - spin).saturating_duration_since(Instant::now()));
                    while Instant::now() < due {
                        std::hint::spin_loop();
                    }
                    match ask_blocking(&mut socket, &options, request.bytes(), &mut buffer) {
                        Ok(answer) => {
                            if !answer.keeps_connection() {
                                socket = None;
                            }
                            seen.take(due, &answer, options.expected);
                        }
                        Err(error) => {
                            socket = None;
                            seen.errors.push(error);
                        }
                    }
                }
            })
        })
        .collect();
    let mut all = Seen::default();
    for thread in threads {
        match thread.join() {
            Ok(seen) => all.merge(seen),
            Err(_) => all.errors.push("a thread panicked".into()),
        }
    }
    all
}

/// Memory of the watched processes, KB.
#[derive(Clone, Copy, Default)]
struct Memory {
    before: u64,
    peak: u64,
    /// When every stream was open for at least one look.
    open: u64,
}

fn watch(pid: u32, conns: usize, stop: Arc<AtomicUsize>) -> std::thread::JoinHandle<Memory> {
    let pids = process::tree(pid);
    let before = process::rss_kb(&pids);
    std::thread::spawn(move || {
        let mut memory = Memory { before, peak: before, open: 0 };
        while stop.load(Ordering::Relaxed) == 0 {
            let was_open = conns > 0 && OPEN.load(Ordering::Relaxed) >= conns;
            std::thread::sleep(WATCH_EVERY);
            let now = process::rss_kb(&pids);
            memory.peak = memory.peak.max(now);
            if was_open && memory.open == 0 {
                memory.open = now;
            }
        }
        memory
    })
}

/// `"name":{"p50":…,"p99":…}`, or nothing without values.
fn quantiles(name: &str, values: &mut [f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() as f64 * part).ceil() as usize).clamp(1, values.len()) - 1];
    format!(r#","{name}":{{"p50":{:.1},"p99":{:.1},"p999":{:.1},"max":{:.1}}}"#, at(0.5), at(0.99), at(0.999), at(1.0))
}

fn main() {
    let options = Arc::new(Options::parse());
    let request = Request::new(&options);
    let run = |time: Duration| if options.conns > 0 { closed_loop(&options, &request, time) } else { open_loop(&options, &request, time) };
    if !options.warmup.is_zero() {
        run(options.warmup);
    }
    OPEN.store(0, Ordering::Relaxed);
    let stop = Arc::new(AtomicUsize::new(0));
    let watched = options.pid.map(|pid| (process::tree(pid), watch(pid, if options.once { options.conns } else { 0 }, stop.clone())));
    let cpu_before = watched.as_ref().map_or(0, |(pids, _)| process::cpu_ns(pids));
    let begun = Instant::now();
    let mut seen = run(options.time);
    let seconds = begun.elapsed().as_secs_f64();
    let answers = seen.latency_us.len();
    let mut report = format!(
        r#"{{"answers":{answers},"seconds":{seconds:.3},"per_second":{:.1},"request_bytes":{},"errors":{},"hangups":{},"faults_shown":{}"#,
        answers as f64 / seconds,
        request.bytes().len(),
        seen.errors.len(),
        seen.hangups,
        seen.faults_shown
    );
    if let Some((pids, watcher)) = watched {
        let cpu_us = process::cpu_ns(&pids).saturating_sub(cpu_before) as f64 / 1e3;
        stop.store(1, Ordering::Relaxed);
        let memory = watcher.join().unwrap_or_default();
        report += &format!(
            r#","cpu_us":{:.2},"cpu_share":{:.3},"rss_kb":{{"before":{},"open":{},"peak":{}}}"#,
            cpu_us / answers.max(1) as f64,
            cpu_us / 1e6 / seconds,
            memory.before,
            memory.open,
            memory.peak
        );
        if options.once {
            let open = if memory.open > 0 { memory.open } else { memory.peak };
            report += &format!(r#","kb_per_stream":{:.1}"#, open.saturating_sub(memory.before) as f64 / options.conns as f64);
        }
    }
    report += &quantiles("latency_us", &mut seen.latency_us);
    report += &quantiles("first_event_us", &mut seen.first_event_us);
    report += &quantiles("transit_us", &mut seen.transit_us);
    seen.errors.sort();
    seen.errors.dedup();
    let samples: Vec<String> = seen.errors.iter().take(5).map(|error| format!("{error:?}")).collect();
    println!(r#"{report},"error_samples":[{}]}}"#, samples.join(","));
}
