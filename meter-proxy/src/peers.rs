//! Peers that go without a word: the kernel asks whether they still live, also while nothing is sent.
//!
//! Not here: peers that live and are silent (`tunnel`, `forward`).
use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// How often the kernel asks, and when it gives up.
struct Watch {
    /// How long a connection is silent before the first question.
    idle: Duration,
    /// Between two questions.
    every: Duration,
    /// So many without an answer end the connection.
    unanswered: u32,
    /// How long bytes, or a question, may stay unacknowledged before the connection is broken, milliseconds; 0:
    /// as long as the kernel tries.
    unacknowledged_ms: u32,
}

const SERVER: Watch = Watch {
    idle: Duration::from_secs(30),
    every: Duration::from_secs(10),
    unanswered: 6,
    unacknowledged_ms: 60_000,
};

/// Slower, because a silent cut drops the questions and the answers too: a bottle that is restored in time finds
/// its connections as they were.
const CLIENT: Watch = Watch {
    idle: Duration::from_secs(60),
    every: Duration::from_secs(60),
    unanswered: 5,
    unacknowledged_ms: 0,
};

/// A server that is gone is noticed in one to two minutes.
///
/// # Errors
/// When the kernel refuses an option.
pub fn watch_server(stream: &TcpStream) -> io::Result<()> {
    watch(stream, &SERVER)
}

/// A client that is gone is noticed in six minutes.
///
/// # Errors
/// When the kernel refuses an option.
pub fn watch_client(stream: &TcpStream) -> io::Result<()> {
    watch(stream, &CLIENT)
}

fn watch(stream: &TcpStream, watch: &Watch) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, watch.idle)?;
    sockopt::set_tcp_keepintvl(stream, watch.every)?;
    sockopt::set_tcp_keepcnt(stream, watch.unanswered)?;
    sockopt::set_tcp_user_timeout(stream, watch.unacknowledged_ms)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_sides_are_asked_whether_they_live() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (client, _) = listener.accept().await.unwrap();
        watch_server(&server).unwrap();
        watch_client(&client).unwrap();
        for (stream, minutes) in [(server, 2), (client, 6)] {
            assert!(sockopt::socket_keepalive(&stream).unwrap() && stream.nodelay().unwrap());
            let idle = sockopt::tcp_keepidle(&stream).unwrap();
            let asked = sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
            assert!(idle + asked <= Duration::from_secs(minutes * 60));
        }
    }
}
