// What the suite of the TS SDK does not use: a shell, a forwarded connection, and events of files. `sdk.sh` bundles it with the SDK.
import net from 'node:net';
import { SlicerClient, GiB } from '@slicervm/sdk';
import { encodeFrame, parseFrame, FRAME_TYPE_DATA, FRAME_TYPE_WINDOW_SIZE, FRAME_TYPE_SESSION_CLOSE, FRAME_TYPE_SHUTDOWN } from '@slicervm/shell';
import WebSocket from 'ws';

const { SLICER_URL: url, SLICER_TOKEN: token } = process.env;
const isNetwork = url.startsWith('http');
const client = new SlicerClient({ baseURL: url, ...(isNetwork && { token }) });
const check = (what, ok, found) => {
  if (!ok) throw new Error(`${what}: ${JSON.stringify(found)}`);
  console.log(`  ok: ${what}`);
};

const vm = await client.vms.create(process.env.SLICER_HOST_GROUP, { cpus: 1, ramBytes: GiB(1) }, { wait: 'agent', waitTimeoutSec: 60 });
try {
  // A server in the guest, a listener here.
  await vm.bg.exec({ command: '/bin/sh', args: ['-c', 'while true; do echo hello | nc -l -p 7000; done'] });
  await new Promise((resolve) => setTimeout(resolve, 500));
  const forwarder = await vm.forward('127.0.0.1:7001:127.0.0.1:7000');
  const text = await new Promise((resolve, reject) => {
    let all = '';
    const connection = net.connect(7001, '127.0.0.1');
    connection.on('data', (data) => { all += data; if (all.includes('\n')) { connection.end(); resolve(all); } });
    connection.on('end', () => resolve(all));
    connection.on('error', reject);
  });
  check('forward', text === 'hello\n', text);
  await forwarder.close();

  const shell = await new Promise((resolve, reject) => {
    let all = '';
    const path = `/vm/${vm.hostname}/shell?uid=0&shell=/bin/bash`;
    const ws = isNetwork
      ? new WebSocket(`${url.replace('http', 'ws')}${path}`, { headers: { authorization: `Bearer ${token}` } })
      : new WebSocket(`ws+unix://${url}:${path}`);
    ws.binaryType = 'arraybuffer';
    ws.on('open', () => {
      const size = new Uint8Array(8);
      new DataView(size.buffer).setUint32(0, 100);
      new DataView(size.buffer).setUint32(4, 40);
      ws.send(encodeFrame(FRAME_TYPE_WINDOW_SIZE, size));
      ws.send(encodeFrame(FRAME_TYPE_DATA, new TextEncoder().encode('stty size; echo $((40 + 2)); exit\n')));
    });
    ws.on('message', (data) => {
      const frame = parseFrame(data);
      if (frame.frameType === FRAME_TYPE_DATA) all += new TextDecoder().decode(frame.payload);
      if ([FRAME_TYPE_SESSION_CLOSE, FRAME_TYPE_SHUTDOWN].includes(frame.frameType)) resolve(all);
    });
    ws.on('close', () => resolve(all));
    ws.on('error', reject);
  });
  check('shell', shell.includes('40 100') && shell.includes('42'), shell);

  const events = [];
  const writing = setInterval(() => vm.fs.writeFile(`/tmp/file-${Date.now()}`, 'x').catch(() => {}), 200);
  for await (const event of vm.fs.watch({ paths: ['/tmp'], events: ['create'], oneShot: true, timeout: '20s' })) events.push(event);
  clearInterval(writing);
  check('fs/watch', events.length === 1 && events[0].type === 'create' && events[0].id === 1, events);
} finally {
  await vm.delete();
}
process.exit(0);
