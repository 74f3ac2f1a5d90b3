//! A server from listening to leaving: the port first, then the model, then requests, then the drain.

mod access_log;
mod listening;
mod signals;

pub(crate) use access_log::LogFormat;

use crate::defaults;
use crate::error::CliError;
use crate::loading::Plan;
use crate::source::Source;
use crate::talk;
use clap::Args;
use engine::EngineConfig;
use engine::model::Packing;
use serve::{Card, Config, EngineBackend, Server};
use signals::Signals;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::oneshot;

/// How to serve, the same for `up` and `serve`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct ServingArgs {
    /// Address to listen on; 0.0.0.0 is every network this machine is in
    #[arg(long, value_name = "ADDRESS", default_value_t = defaults::HOST, value_parser = listening::parse_host)]
    host: IpAddr,

    /// Generations that compute at once; each can hold a whole context
    #[arg(long, value_name = "N", default_value_t = defaults::PARALLEL as u16, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,

    /// Generations that may wait for their turn; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = defaults::WAITING_MAX as u16, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,

    /// Name of the model in the API, instead of the file's; may be given several times
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,

    /// Seconds that running generations may go on after the server was asked to end
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::DRAIN_SECONDS as u32)]
    drain_timeout: u32,

    /// Web origin, such as http://localhost:3000, whose pages may use the API; `*` means all. May be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,

    /// Name besides localhost that this server may be asked by; `*` means all. On 127.0.0.1 and ::1 all others are
    /// refused with 403, elsewhere only if this names some. May be given several times
    #[arg(long, value_name = "NAME", value_parser = listening::parse_allowed_host)]
    allowed_host: Vec<String>,
}

/// What `up` and `serve` do differently.
pub(crate) struct Manner {
    /// `None`: the usual port, or the next free one.
    pub(crate) port: Option<u16>,
    pub(crate) log: LogFormat,
    /// What to say when the model answers.
    pub(crate) greeting: fn(url: &str) -> String,
}

impl ServingArgs {
    pub(crate) fn engine(&self) -> EngineConfig {
        let waiting_max = usize::from(self.queue).max(EngineConfig::default().waiting_max);
        EngineConfig { parallel: self.parallel.into(), waiting_max, ..EngineConfig::default() }
    }

    fn server(&self, log: LogFormat) -> Config {
        Config {
            waiting_max: self.queue.into(),
            drain_time_max: Duration::from_secs(self.drain_timeout.into()),
            cors_origins: self.cors_origin.clone(),
            hosts_allowed: self.allowed_host.clone(),
            on_access: access_log::writer(log),
            ..Config::default()
        }
    }

    fn card(&self, source: &Source, general_name: String) -> Card {
        let names = self.alias.iter().cloned().chain([source.id(), general_name]);
        let modified = |path| fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok();
        let created = match source {
            Source::Demo => None,
            Source::File(path) => modified(path),
        };
        Card { created: created.map_or(0, |since| since.as_secs()), ..Card::named(names) }
    }
}

/// Serves the model until a signal ends it.
pub(crate) fn serve(plan: Plan, args: &ServingArgs, manner: &Manner) -> Result<(), CliError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(defaults::HTTP_THREADS).enable_all().build()?;
    let result = runtime.block_on(listen_and_serve(plan, args, manner));
    // Nobody waits any more for what still computes.
    runtime.shutdown_background();
    result
}

/// Where the loader leaves the model when it answers.
type Loaded = Arc<OnceLock<Arc<EngineBackend>>>;

async fn listen_and_serve(plan: Plan, args: &ServingArgs, manner: &Manner) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let listener = listening::listen(args.host, manner.port).await?;
    let address = listener.local_addr()?;
    // A line that programs can wait for. That nobody reads it is no reason not to serve.
    let _ = talk::write_line(format_args!("listening on http://{address}"));

    let server = Server::new(args.server(manner.log));
    let greeting = (manner.greeting)(&url(address));
    let loaded = Loaded::default();
    let failed = load_aside(plan, args.clone(), server.clone(), greeting, Arc::clone(&loaded))?;
    let (begin_drain, drain) = oneshot::channel::<()>();
    let mut failure = None;
    let leaving = async {
        tokio::select! {
            () = signals.next() => talk::say(format_args!(
                "stopping: what runs may finish within {} s; a second signal ends it at once", args.drain_timeout
            )),
            Ok(error) = failed => failure = Some(error),
        }
        let _ = begin_drain.send(());
        signals.next().await;
        signals::end_at_once();
    };
    let serving = async {
        server.run(listener, async { drop(drain.await) }).await;
        if let Some(backend) = loaded.get().cloned() {
            // A panic was reported when it happened.
            let _ = tokio::task::spawn_blocking(move || backend.finish()).await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = leaving => {}
    }
    failure.map_or(Ok(()), Err)
}

/// Loads the model on a thread of its own. What is returned resolves if that fails, and never otherwise.
fn load_aside(
    plan: Plan,
    args: ServingArgs,
    server: Server,
    greeting: String,
    loaded: Loaded,
) -> Result<oneshot::Receiver<CliError>, CliError> {
    let (fail, failed) = oneshot::channel();
    let load = move || {
        let began = Instant::now();
        let source = plan.source.clone();
        talk::say(format_args!("loading {}", plan.describe()));
        match plan.load(Packing::Background, &mut |part| server.loading(part)) {
            Ok(engine) => {
                let card = args.card(&source, engine.model().name());
                talk::say(format_args!("ready after {} ms as '{}'", began.elapsed().as_millis(), card.id));
                let backend = loaded.get_or_init(|| Arc::new(EngineBackend::new(engine, card, 0)));
                server.ready(Arc::clone(backend) as _);
                talk::say(greeting);
            }
            Err(error) => {
                server.failed(error.message());
                // The receiver is gone only if the server is leaving already.
                let _ = fail.send(error);
            }
        }
    };
    thread::Builder::new().name("dunlin-loader".to_owned()).spawn(load)?;
    Ok(failed)
}

/// Where a browser on this machine finds the server.
fn url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}
