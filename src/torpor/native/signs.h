/*
 * Signs: a backend that belongs to the pool of connections says what it was made to do that outlives the transaction, so that the pool
 * knows when the next client would see something of the one before (docs/decisions/0030-the-pool-of-connections.md). PostgreSQL's own
 * hooks see what no reading of a client's text can: what functions do inside of functions, triggers, and DO blocks.
 *
 * A sign is a ParameterStatus of the name "torpor.left", which the pool takes out of the stream. It stands before the ReadyForQuery of
 * the command that caused it. "torpor.signs" is said once, before anything else: whoever doesn't hear it must expect anything.
 */
#define POOL_MARK "-c torpor.pool="

typedef void (*utility_fn)(void *, const char *, _Bool, int, void *, void *, void *, void *);
typedef void (*access_fn)(int, unsigned, unsigned, int, void *);

struct output { /* PQcommMethods, the same in PostgreSQL 9.4 to 18 but for what 14 dropped from its end */
    void (*comm_reset)(void);
    int (*flush)(void);
    int (*flush_if_writable)(void);
    _Bool (*is_send_pending)(void);
    int (*putmessage)(char, const char *, size_t);
    void (*putmessage_noblock)(char, const char *, size_t);
};

static struct output **output;
static utility_fn next_utility, *utility_hook;
static access_fn next_access, *access_hook;
static int (*create_command_tag)(void *);
static const char *(*command_tag_name)(int);
static void (*temp_namespace)(unsigned *, unsigned *);
static char *(*func_name)(unsigned);
static const char **client_text;
static void (*reset_sequences)(void);
static _Bool (*in_transaction)(void);
static int pooled_fd = -1;
static int reports_path; /* PostgreSQL reports search_path, from 18 on: so the pool keeps it with its client, as it does the other ones */

static void prepare_watch(void); /* watch.h */
static void start_watch(int);
static void watch_function(unsigned);
static void watch_utility(void);

static void sign(const char *name, const char *value)
{
    char body[192];
    size_t a = strlen(name) + 1, b = strlen(value) + 1;

    if (a + b > sizeof body)
        return;
    memcpy(body, name, a);
    memcpy(body + a, value, b);
    (*output)->putmessage('S', body, a + b);
}

static void left(const char *what)
{
    sign("torpor.left", what);
}

/* Whether the text is one statement that begins with `words` (in lower case, one space between them). */
static int is_only(const char *text, const char *words)
{
    const char *end;

    text += strspn(text, " \t\r\n");
    for (; *words; words++)
        if (*words == ' ') {
            size_t n = strspn(text, " \t\r\n");
            if (n == 0)
                return 0;
            text += n;
        } else if ((*text++ | 32) != *words)
            return 0;
    end = strchr(text, ';');
    return end == NULL || end[1 + strspn(end + 1, " \t\r\n")] == '\0';
}

/* Whether all that the text does is to set search_path. */
static int sets_only_path(const char *text)
{
    static const char space[] = " \t\r\n";

    if (!is_only(text, "set "))
        return 0;
    text += strspn(text, space) + 3;
    text += strspn(text, space);
    if (strncasecmp(text, "session", 7) == 0) {
        text += 7;
        text += strspn(text, space);
    }
    return strncasecmp(text, "search_path", 11) == 0 && strchr(" \t\r\n=", text[11]);
}

static void note_utility(const char *tag, const char *text)
{
    static const char *const kept[] = {"LISTEN", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL", "DISCARD TEMP", "LOAD", NULL};
    unsigned space = 0, toast = 0;

    if (strcmp(tag, "SET") == 0) {
        if (!is_only(text, "set local ") && !is_only(text, "set transaction ") && !(reports_path && sets_only_path(text)))
            left("SET");
        return;
    }
    if (strcmp(tag, "DECLARE CURSOR") == 0) {
        if (strcasestr(text, "hold"))
            left("DECLARE CURSOR WITH HOLD");
        return;
    }
    for (int i = 0; kept[i]; i++)
        if (strcmp(tag, kept[i]) == 0) {
            left(tag);
            return;
        }
    if (strncmp(tag, "CREATE ", 7) == 0 || strcmp(tag, "SELECT INTO") == 0) {
        temp_namespace(&space, &toast);
        if (space != 0 && strcasestr(text, "temp"))
            left("CREATE TEMPORARY");
    }
}

static void on_utility(void *statement, const char *text, _Bool read_only, int context, void *parameters, void *environment, void *receiver,
                       void *completion)
{
    const char *tag = command_tag_name(create_command_tag(statement));

    watch_utility();
    next_utility(statement, text, read_only, context, parameters, environment, receiver, completion);
    note_utility(tag, text);
}

/* Calls of set_config whose setting ends with the transaction are as good as SET LOCAL: as many as the client's own text has of them. */
static unsigned count_local(const char *text)
{
    unsigned all = 0, local = 0;

    for (const char *at = text; (at = strcasestr(at, "set_config")); at++)
        all++;
    for (const char *at = text; (at = strcasestr(at, "true")); at++) {
        const char *before = at, *after = at + 4;
        while (before > text && strchr(" \t\r\n", before[-1]))
            before--;
        after += strspn(after, " \t\r\n");
        local += before > text && before[-1] == ',' && *after == ')';
    }
    return all == local ? all : 0;
}

static void note_function(unsigned oid)
{
    static const char *counted_in;
    static unsigned counted;
    static int64_t (*started)(void);
    static int64_t counted_at;

    switch (oid) {
    case 2078: { /* set_config */
        int64_t now;
        if (!started)
            started = (int64_t(*)(void))dlsym(RTLD_DEFAULT, "GetCurrentStatementStartTimestamp");
        now = started ? started() : 0;
        if (*client_text != counted_in || now != counted_at) {
            counted_in = *client_text;
            counted_at = now;
            counted = 0;
        }
        if (!counted_in || ++counted > count_local(counted_in))
            left("set_config");
        return;
    }
    case 1599:
        left("setseed");
        return;
    case 2880: case 2881: case 2882: case 2883: case 2886: case 2887: case 2888: case 2889:
        left("pg_advisory_lock");
        return;
    case 6006: case 3779: case 3786: case 4220: case 4221: case 4222: case 4223: case 4224:
        left("replication"); /* an origin of the session, a slot that may be temporary */
        return;
    }
    if (oid >= 16384) {
        const char *name = func_name(oid);
        if (name && (strcmp(name, "set_limit") == 0 || strncmp(name, "dblink_connect", 14) == 0))
            left(name);
    }
}

static void on_access(int access, unsigned class, unsigned object, int sub, void *argument)
{
    if (next_access)
        next_access(access, class, object, sub, argument);
    if (access == 4) { /* OAT_FUNCTION_EXECUTE */
        note_function(object);
        watch_function(object);
    }
}

/* In the backend, when its startup message has been read: it is the pool's if that says so. */
static void begin_signs(int fd)
{
    void *standard = dlsym(RTLD_DEFAULT, "standard_ProcessUtility");
    const char *(*config_option)(const char *, _Bool, _Bool);

    output = dlsym(RTLD_DEFAULT, "PqCommMethods");
    utility_hook = dlsym(RTLD_DEFAULT, "ProcessUtility_hook");
    access_hook = dlsym(RTLD_DEFAULT, "object_access_hook");
    create_command_tag = (int (*)(void *))dlsym(RTLD_DEFAULT, "CreateCommandTag");
    command_tag_name = (const char *(*)(int))dlsym(RTLD_DEFAULT, "GetCommandTagName");
    temp_namespace = (void (*)(unsigned *, unsigned *))dlsym(RTLD_DEFAULT, "GetTempNamespaceState");
    func_name = (char *(*)(unsigned))dlsym(RTLD_DEFAULT, "get_func_name");
    client_text = dlsym(RTLD_DEFAULT, "debug_query_string");
    reset_sequences = (void (*)(void))dlsym(RTLD_DEFAULT, "ResetSequenceCaches");
    in_transaction = (_Bool(*)(void))dlsym(RTLD_DEFAULT, "IsTransactionOrTransactionBlock");
    if (!standard || !output || !*output || !utility_hook || !access_hook || !create_command_tag || !command_tag_name || !temp_namespace ||
        !func_name || !client_text || !reset_sequences || !in_transaction)
        return; /* the pool hears no sign, and expects anything */
    next_utility = *utility_hook ? *utility_hook : (utility_fn)standard;
    next_access = *access_hook;
    *utility_hook = on_utility;
    *access_hook = on_access;
    pooled_fd = fd;
    config_option = (const char *(*)(const char *, _Bool, _Bool))dlsym(RTLD_DEFAULT, "GetConfigOption");
    reports_path = config_option && atoi(config_option("server_version_num", 0, 0)) >= 180000;
    prepare_watch();
    sign("torpor.signs", "1");
}

/*
 * What currval and lastval know has no sign: identity columns count by no function. But it is forgotten at no cost: what the pool sends
 * begins with a Flush or more, which by themselves do nothing. An odd number is for another client than the one before; two and three say
 * that what follows is to be watched, four and five that it is after the next ReadyForQuery.
 */
static void note_received(const char *data, ssize_t n)
{
    int flushes = 0;

    while (n >= 5 * (flushes + 1) && memcmp(data + 5 * flushes, "H\0\0\0\4", 5) == 0)
        flushes++;
    if (flushes == 0 || flushes > 5 || in_transaction())
        return;
    if (flushes & 1)
        reset_sequences();
    if (flushes >= 2)
        start_watch(flushes / 2);
}
