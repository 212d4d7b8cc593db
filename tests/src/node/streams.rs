//! Streams of containers and pods through containerd's streaming server, as `kubectl exec`, `attach` and `port-forward` have
//! them: messages of a websocket, each with its channel's number before it.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;

use super::Node;

/// Open streams.
pub struct Session {
    socket: WebSocketStream<TcpStream>,
    output: Vec<u8>,
    errors: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Session {
    /// Connects to a URL that containerd gave, with the one of these protocols that it speaks.
    pub(super) async fn open(node: &Node, url: &str, protocols: &'static str) -> Result<Self, String> {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        let address = request.uri().authority().and_then(|authority| authority.as_str().parse().ok());
        let stream = node.connect(address.ok_or("the URL has no address")?).map_err(|error| error.to_string())?;
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        let connected = tokio_tungstenite::client_async(request, stream).await.map_err(|error| error.to_string())?;
        Ok(Self { socket: connected.0, output: Vec::new(), errors: Vec::new(), end: None })
    }

    /// Writes to the standard input, or to the port.
    ///
    /// # Panics
    /// If the connection is broken.
    pub async fn send(&mut self, data: &[u8]) {
        self.message(INPUT, data).await;
    }

    /// Tells the terminal's size.
    ///
    /// # Panics
    /// If the connection is broken.
    pub async fn resize(&mut self, columns: u16, rows: u16) {
        let size = serde_json::json!({"Width": columns, "Height": rows}).to_string();
        self.message(SIZE, size.as_bytes()).await;
    }

    /// Reads until the output contains `text`, and returns all of it so far.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub async fn until(&mut self, text: &str, limit: Duration) -> String {
        let read =
            tokio::time::timeout(limit, async { while !self.output().contains(text) && self.receive().await {} });
        let _ = read.await;
        let output = self.output();
        assert!(output.contains(text), "no {text:?} within {limit:?}: {output}");
        output
    }

    /// Reads until the end is told, which is after all output, and returns output, errors and the exit status that the end tells.
    ///
    /// # Panics
    /// If there is no end within `limit`.
    pub async fn finish(mut self, limit: Duration) -> (String, String, i32) {
        let read = tokio::time::timeout(limit, async { while self.end.is_none() && self.receive().await {} }).await;
        let (output, errors) = (self.output(), String::from_utf8_lossy(&self.errors).into_owned());
        assert!(read.is_ok(), "no end within {limit:?}: {output}{errors}");
        let end = self.end.unwrap_or_else(|| panic!("the end tells nothing: {output}{errors}"));
        let code = exit_code(&serde_json::from_slice(&end).unwrap());
        (output, errors, code)
    }

    /// Reads until the connection is over, and returns all that came: of a port, also why it can't be had.
    ///
    /// # Panics
    /// If it is not over within `limit`.
    pub async fn closed(mut self, limit: Duration) -> String {
        let read = tokio::time::timeout(limit, async { while self.receive().await {} }).await;
        let output = self.output();
        assert!(read.is_ok(), "not over within {limit:?}: {output}");
        output
    }

    async fn message(&mut self, channel: u8, data: &[u8]) {
        self.socket.send(Message::binary([&[channel], data].concat())).await.unwrap();
    }

    /// Takes the next message; false at the end.
    async fn receive(&mut self) -> bool {
        let Some(Ok(message)) = self.socket.next().await else { return false };
        if let Message::Binary(message) = message
            && let Some((channel, data)) = message.split_first()
        {
            match *channel {
                OUTPUT => self.output.extend_from_slice(data),
                ERRORS => self.errors.extend_from_slice(data),
                END => self.end = Some(data.to_vec()),
                // A port's own channel, which begins with the port's number.
                _ => self.output.extend_from_slice(data),
            }
        }
        true
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// From a status as Kubernetes writes it.
fn exit_code(status: &Value) -> i32 {
    if status["status"] == "Success" {
        return 0;
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    let code = cause.and_then(|cause| cause["message"].as_str()).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("a status without an exit code: {status}"))
}

/// What commands and attached containers speak, and what forwarded ports do.
pub(super) const COMMANDS: &str = "v4.channel.k8s.io";
pub(super) const PORTS: &str = "v4.channel.k8s.io";
/// For a port this is the channel both ways.
const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const END: u8 = 3;
const SIZE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_end_tells_the_exit_status() {
        assert_eq!(exit_code(&json!({"status": "Success"})), 0);
        let causes = json!([{"reason": "ExitCode", "message": "7"}]);
        assert_eq!(
            exit_code(&json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}})),
            7
        );
    }
}
