//! `top`: the dashboard over the control API.
use super::output::print;
use crate::audit::Row;
use crate::cli::{Global, Top};
use crate::control::api;
use crate::control::client::{Client, ClientError};
use crate::error::{Exit, Failure};
use crate::tui::{self, Backend, TuiError};

/// Audit rows asked for at once.
const AUDIT_PAGE: u32 = 1_000;

pub(super) fn run(global: &Global, top: &Top) -> Result<(), Failure> {
    let client = Client::new(super::socket(global));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("a runtime for the dashboard", &error))?;
    // no daemon at the start is a mistake to be told; one that goes away later is shown on the screen
    let status = runtime.block_on(client.status())?;
    if top.once {
        let rows = runtime.block_on(newest_rows(&client, usize::from(top.height)))?;
        return print(&tui::render_to_text(&status, &rows, top.width, top.height));
    }
    runtime.block_on(tui::run(client)).map_err(|error| match error {
        TuiError::NotATerminal => Failure::new(Exit::Usage, error.to_string()),
        TuiError::Terminal(_) => Failure::new(Exit::Failed, error.to_string()),
    })
}

/// The last rows of the audit, oldest first.
async fn newest_rows(client: &Client, most: usize) -> Result<Vec<Row>, ClientError> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let page = client.audit(rows.last().map_or(0, |row| row.id), AUDIT_PAGE).await?;
        if page.is_empty() {
            return Ok(rows);
        }
        rows.extend(page);
        rows.drain(..rows.len().saturating_sub(most));
    }
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

    async fn freeze(&self, bottle: &str) -> Result<(), String> {
        Client::freeze(self, bottle, &api::Reason::default()).await.map(drop).map_err(words)
    }

    async fn thaw(&self, bottle: &str) -> Result<(), String> {
        Client::thaw(self, bottle).await.map(drop).map_err(words)
    }

    async fn kill(&self, bottle: &str) -> Result<(), String> {
        Client::kill(self, bottle, &api::Reason::default()).await.map(drop).map_err(words)
    }

    async fn restore(&self, bottle: &str, body: &api::Restore) -> Result<(), String> {
        Client::restore(self, bottle, body).await.map(drop).map_err(words)
    }
}
