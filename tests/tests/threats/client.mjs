// An agent as Node programs are: its https module knows of no proxy, whatever HTTPS_PROXY says.
// Asks once for a stream, writes its bytes to stdout as they come, and says on stderr how it ended.
// A connection that the kernel refuses is tried again for a while, as SDKs do.
import https from 'node:https';

const body = JSON.stringify({ model: 'claude-mock-1', max_tokens: 4096, stream: true,
  messages: [{ role: 'user', content: 'Say something long.' }] });
const options = { method: 'POST', host: 'api.anthropic.com', path: '/v1/messages', headers: {
  'x-api-key': 'sk-test', 'anthropic-version': '2023-06-01', 'content-type': 'application/json',
  'content-length': Buffer.byteLength(body) } };
let refusals = 0;

function ask() {
  const request = https.request(options, (answer) => {
    answer.on('data', (bytes) => process.stdout.write(bytes));
    answer.on('close', () => end(answer.complete ? 0 : 1, `${answer.statusCode}`));
  });
  request.on('error', (error) => {
    if (error.code === 'EPERM' && ++refusals < 50) setTimeout(ask, 100);
    else end(1, error.message);
  });
  request.end(body);
}

function end(code, words) {
  console.error(JSON.stringify({ words, refusals }));
  process.exitCode = code;
}

ask();
