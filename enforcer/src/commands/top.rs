//! `top`: the dashboard over the control API.
use crate::audit::Row;
use crate::cli::Global;
use crate::control::api;
use crate::control::client::{Client, ClientError};
use crate::error::{Exit, Failure};
use crate::tui::{self, Backend, TuiError};

/// Audit rows asked for at once.
const AUDIT_PAGE: u32 = 1_000;

pub(super) fn run(global: &Global) -> Result<(), Failure> {
    let client = Client::new(super::socket(global));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("a runtime for the dashboard", &error))?;
    // no daemon at the start is a mistake to be told; one that goes away later is shown on the screen
    runtime.block_on(client.status())?;
    runtime.block_on(tui::run(client)).map_err(|error| match error {
        TuiError::NotATerminal => Failure::new(Exit::Usage, error.to_string()),
        TuiError::Terminal(_) => Failure::new(Exit::Failed, error.to_string()),
    })
}

fn words(error: ClientError) -> String {
    Failure::from(error).message
}

impl Backend for Client {
    async fn status(&self) -> Result<api::Status, String> {
        Client::status(self).await.map_err(words)
    }

    async fn audit(&self, after: i64) -> Result<Vec<Row>, String> {
        Client::audit(self, after, AUDIT_PAGE).await.map_err(words)
    }

    async fn cut(&self, bottle: &str, body: &api::Cut) -> Result<(), String> {
        Client::cut(self, bottle, body).await.map(drop).map_err(words)
    }

    async fn cut_all(&self, body: &api::Cut) -> Result<(), String> {
        Client::cut_all(self, body).await.map(drop).map_err(words)
    }

    async fn restore(&self, bottle: &str, body: &api::Restore) -> Result<(), String> {
        Client::restore(self, bottle, body).await.map(drop).map_err(words)
    }
}
