// Fetches a file with ssh2-sftp-client, tries what it must not do, and fetches again: port, password, name, target.
// Logs in with the keys of the agent instead, if SSH_AUTH_SOCK names one.
const Client = require('ssh2-sftp-client');

async function refused(what, attempt) {
  try {
    await attempt();
  } catch (error) {
    console.log(`${what} refused ${error.code}`);
    return;
  }
  throw new Error(`${what} was allowed`);
}

async function main() {
  const [port, password, name, target] = process.argv.slice(2);
  const sftp = new Client();
  const agent = process.env.SSH_AUTH_SOCK;
  const secret = agent ? { agent } : { password };
  await sftp.connect({ host: '127.0.0.1', port: Number(port), username: 'triton', ...secret });
  console.log('listed', (await sftp.list('/')).length);
  await sftp.fastGet(`/${name}`, target);
  await refused('delete', () => sftp.delete(`/${name}`));
  await refused('rename', () => sftp.rename(`/${name}`, '/other.gz'));
  await refused('upload', () => sftp.put(Buffer.alloc(100000), '/upload.gz'));
  await sftp.get(`/${name}`, `${target}.again`);
  await sftp.end();
  console.log('done');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
