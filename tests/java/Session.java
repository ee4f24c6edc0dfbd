// pgjdbc: parameters, statements that the server prepares, a batch, COPY both ways, a cursor, and a transaction in which the database sleeps.
// Arguments: for each database host:port/name, user and password. All are amid their transactions when it says "ready".

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

class Session {
    final Connection connection;
    PreparedStatement longer;

    Session(String address, String user, String password) throws SQLException {
        connection = DriverManager.getConnection("jdbc:postgresql://" + address + "?prepareThreshold=2", user, password);
    }

    static void check(boolean holds, Object seen) {
        if (!holds) throw new AssertionError(String.valueOf(seen));
    }

    List<String> longerThan(int pages) throws SQLException {
        longer.setInt(1, pages);
        List<String> titles = new ArrayList<>();
        try (ResultSet rows = longer.executeQuery()) {
            while (rows.next()) titles.add(rows.getString(1));
        }
        return titles;
    }

    void begin() throws Exception {
        try (var statement = connection.createStatement()) {
            statement.execute("CREATE TABLE book (title text PRIMARY KEY, pages integer NOT NULL)");
        }
        try (var insert = connection.prepareStatement("INSERT INTO book VALUES (?, ?)")) {
            for (Object[] row : new Object[][] {{"Moby-Dick", 635}, {"Short", 10}, {"Shorter", 9}}) {
                insert.setString(1, (String) row[0]);
                insert.setInt(2, (Integer) row[1]);
                insert.addBatch();
            }
            check(insert.executeBatch().length == 3, "batch");
        }
        CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
        check(copies.copyIn("COPY book FROM STDIN", new StringReader("Shortest\t1\n")) == 1, "copy in");
        StringWriter copied = new StringWriter();
        copies.copyOut("COPY (SELECT * FROM book WHERE pages = 1) TO STDOUT", copied);
        check(copied.toString().equals("Shortest\t1\n"), copied);
        longer = connection.prepareStatement("SELECT title FROM book WHERE pages > ? ORDER BY title");
        for (int turn = 0; turn < 4; turn++) check(longerThan(300).equals(List.of("Moby-Dick")), turn);
        connection.setAutoCommit(false);
        try (var insert = connection.prepareStatement("INSERT INTO book VALUES (?, ?)")) {
            insert.setString(1, "Walden");
            insert.setInt(2, 352);
            insert.executeUpdate();
        }
    }

    void end() throws SQLException {
        check(longerThan(300).equals(List.of("Moby-Dick", "Walden")), "slept");
        try (var statement = connection.createStatement()) {
            statement.setFetchSize(1);
            int total = 0;
            try (ResultSet rows = statement.executeQuery("SELECT pages FROM book")) {
                while (rows.next()) total += rows.getInt(1);
            }
            check(total == 1007, total);
        }
        connection.commit();
        connection.setAutoCommit(true);
        try (var statement = connection.createStatement()) {
            statement.execute("INSERT INTO book VALUES ('Walden', 1)");
            check(false, "a second one of this name");
        } catch (SQLException error) {
            check(error.getSQLState().equals("23505"), error);
        }
        connection.close();
    }

    public static void main(String[] arguments) throws Exception {
        List<Session> sessions = new ArrayList<>();
        for (int at = 0; at < arguments.length; at += 3) sessions.add(new Session(arguments[at], arguments[at + 1], arguments[at + 2]));
        for (Session session : sessions) session.begin();
        System.out.println("ready");
        System.in.read();
        for (Session session : sessions) session.end();
        System.out.println("done");
    }
}
