import com.jcraft.jsch.ChannelSftp;
import com.jcraft.jsch.JSch;
import com.jcraft.jsch.JSchException;
import com.jcraft.jsch.Session;
import com.jcraft.jsch.SftpException;
import java.io.ByteArrayInputStream;

/**
 * Tries a wrong password, fetches a file as an old JVM puller would, tries what it must not do, and fetches again: port,
 * password, name, target.
 */
public class JschPull {
    interface Attempt {
        void run() throws SftpException;
    }

    static void refused(String what, Attempt attempt) throws Exception {
        try {
            attempt.run();
        } catch (SftpException e) {
            System.out.println(what + " refused " + e.id);
            return;
        }
        throw new Exception(what + " was allowed");
    }

    static Session connect(String port, String password) throws JSchException {
        Session session = new JSch().getSession("triton", "127.0.0.1", Integer.parseInt(port));
        session.setPassword(password);
        session.setConfig("StrictHostKeyChecking", "no");
        session.connect(10000);
        return session;
    }

    public static void main(String[] args) throws Exception {
        String name = args[2];
        try {
            connect(args[0], "wrong");
            throw new Exception("a wrong password was accepted");
        } catch (JSchException e) {
            if (!e.getMessage().equals("Auth fail")) throw e;
        }
        Session session = connect(args[0], args[1]);
        ChannelSftp sftp = (ChannelSftp) session.openChannel("sftp");
        sftp.connect(10000);
        System.out.println("pwd " + sftp.pwd());
        System.out.println("listed " + sftp.ls(".").size());
        sftp.get(name, args[3]);
        refused("delete", () -> sftp.rm(name));
        refused("rename", () -> sftp.rename(name, "other.gz"));
        refused("upload", () -> sftp.put(new ByteArrayInputStream(new byte[100000]), "upload.gz"));
        sftp.get(name, args[3] + ".again");
        sftp.disconnect();
        session.disconnect();
        System.out.println("done " + session.getServerVersion());
    }
}
