//! The load: `load --url http://127.0.0.1:9001/v1/chat/completions …`
//!
//! Closed loop with `--conns N` (each connection asks again as soon as it has its answer), open loop with `--rate N` (requests
//! are due at fixed times, and a latency counts from when its request was due, so that a stall cannot hide). Every answer is
//! checked. With `--pid` the processor time and memory of that process and its descendants are in the report, which is one line of
//! JSON on stdout.

mod answer;
mod process;

use answer::{Answer, Expected};
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
    pid: Option<u32>,
}

fn usage(what: &str) -> ! {
    eprintln!(
        "load: {what}\nusage: load --url URL (--conns N | --rate N) [--header 'name: value']… [--model M] [--body-kb N] [--stream] [--usage]\n            [--events N] [--pause-ms N] [--secs N] [--warmup N] [--once] [--pid PID]"
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

    /// The request, head and body, ready to be written.
    fn request(&self) -> Vec<u8> {
        let body = self.body();
        let mut request = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nuser-agent: load/1\r\n{}content-length: {}\r\n\r\n",
            self.path,
            self.address,
            self.headers,
            body.len()
        );
        request.push_str(&body);
        request.into_bytes()
    }

    /// A conversation of about `body_kb` KiB in turns of about a KiB, with escapes and text beyond ASCII as real ones have.
    fn body(&self) -> String {
        const TURN: &str = r#"The reading at gauge 7 was \"2.31 m\",\nrising; Zufluss über dem Mittel (≈ 14 m³/s) — 水位 normal. "#;
        let (stream, wishes) = match self.expected {
            Expected::Whole => (String::new(), String::new()),
            Expected::Stream { events, usage } => (
                format!(r#""stream":true,{}"#, if usage { r#""stream_options":{"include_usage":true},"# } else { "" }),
                format!("{{{{events={events} pause_ms={}}}}} ", self.pause_ms),
            ),
        };
        let mut body = format!(
            r#"{{"model":"{}","temperature":0.3,"max_tokens":300,{stream}"messages":[{{"role":"system","content":"{wishes}You watch a river."}}"#,
            self.model
        );
        let size = self.body_kb << 10;
        let last = r#",{"role":"user","content":"And now?"}]}"#;
        for role in ["user", "assistant"].into_iter().cycle() {
            let room = size.saturating_sub(body.len() + last.len() + 32);
            let turns = (room / TURN.len()).min(9);
            if turns == 0 {
                break;
            }
            body += &format!(r#",{{"role":"{role}","content":"{}"}}"#, TURN.repeat(turns));
        }
        body + last
    }
}

/// What one worker saw.
#[derive(Default)]
struct Seen {
    latency_us: Vec<f64>,
    first_event_us: Vec<f64>,
    transit_us: Vec<f64>,
    errors: Vec<String>,
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
    }
}

/// Streams that have shown their first event, for the memory of open streams.
static OPEN: AtomicUsize = AtomicUsize::new(0);

async fn ask(socket: &mut Option<tokio::net::TcpStream>, options: &Options, request: &[u8], buffer: &mut [u8]) -> Result<Answer, String> {
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
            0 => return Err("cut off".into()),
            count => answer.feed(&buffer[..count])?,
        }
        if !is_open && answer.times.first_event.is_some() {
            is_open = true;
            OPEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(answer)
}

async fn worker(options: Arc<Options>, request: Arc<Vec<u8>>, until: Instant, after: Duration) -> Seen {
    tokio::time::sleep(after).await;
    let mut seen = Seen::default();
    let mut socket = None;
    // The memory scenario has thousands of these.
    let mut buffer = vec![0; if options.once { 4 << 10 } else { 32 << 10 }];
    while Instant::now() < until {
        let from = Instant::now();
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(&mut socket, &options, &request, &mut buffer)).await;
        match asked.unwrap_or_else(|_| Err("no whole answer in time".into())) {
            Ok(answer) => {
                if !answer.keeps_connection() {
                    socket = None;
                }
                seen.take(from, &answer, options.expected);
            }
            Err(error) => {
                socket = None;
                seen.errors.push(error);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if options.once {
            break;
        }
    }
    seen
}

fn closed_loop(options: &Arc<Options>, request: &Arc<Vec<u8>>, time: Duration) -> Seen {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { usage("no runtime") };
    runtime.block_on(async {
        let until = Instant::now() + time;
        let mut workers = tokio::task::JoinSet::new();
        for index in 0..options.conns {
            // Paced streams begin spread over one pause: in step they would share the gateway's wake-ups.
            let after = Duration::from_millis(options.pause_ms * index as u64 / options.conns as u64);
            workers.spawn(worker(options.clone(), request.clone(), until, after));
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
            0 => return Err("cut off".into()),
            count => answer.feed(&buffer[..count])?,
        }
    }
    Ok(answer)
}

fn open_loop(options: &Arc<Options>, request: &Arc<Vec<u8>>, time: Duration) -> Seen {
    let begun = Instant::now() + Duration::from_millis(5);
    let count = (options.rate * time.as_secs_f64()) as u64;
    let next = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..OPEN_LOOP_THREADS)
        .map(|_| {
            let (options, request, next) = (options.clone(), request.clone(), next.clone());
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                let mut socket = None;
                let mut buffer = vec![0; 32 << 10];
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return seen;
                    }
                    let due = begun + Duration::from_secs_f64(index as f64 / options.rate);
                    std::thread::sleep((due - SPIN).saturating_duration_since(Instant::now()));
                    while Instant::now() < due {
                        std::hint::spin_loop();
                    }
                    match ask_blocking(&mut socket, &options, &request, &mut buffer) {
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
    format!(r#","{name}":{{"p50":{:.1},"p99":{:.1},"max":{:.1}}}"#, at(0.5), at(0.99), at(1.0))
}

fn main() {
    let options = Arc::new(Options::parse());
    let request = Arc::new(options.request());
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
        r#"{{"answers":{answers},"seconds":{seconds:.3},"per_second":{:.1},"request_bytes":{},"errors":{}"#,
        answers as f64 / seconds,
        request.len(),
        seen.errors.len()
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
