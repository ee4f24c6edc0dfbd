/*
 * Writes: every backend counts, for each table, the commits that wrote to it, so that what was read from the table before can be told from
 * what would be read now, without asking PostgreSQL (docs/decisions/0033-the-cache.md).
 *
 * The counters are a file of Torpor's that the postmaster maps, and all its children with it: 4096 words of 64 bits. The first is the
 * epoch, which counts what may have changed anything; a table has the word 1 + oid % 4095. They are increased after a commit is visible to
 * others, and before its client hears of it. So whoever reads them, then runs a statement, and finds them unchanged later on has what
 * the statement would give now, as far as commits go that anybody was told of. To count too much costs entries of a cache; too little is
 * a lie. A tenant's own code can write to them (they are memory of its processes), and so deceive itself.
 *
 * Which tables a transaction wrote to PostgreSQL knows itself: it counts changed rows, whoever changes them (statements, COPY, cascades,
 * rows that partitions got, logical replication, C code), per transaction and with what was rolled back taken out. At the commit that list
 * is still there. Beside it stand the targets of plans, for tables that aren't PostgreSQL's own kind. A change of a system catalog is
 * DDL, and counts for everything, as does all that can't be told: rows that aren't counted (track_counts = off), a prepared transaction,
 * a transaction with an id that changed nothing we know of, a start of PostgreSQL.
 *
 * All of it is found by name at run time. The hooks are set once, in the postmaster, and its children inherit them.
 */
#define COUNTER_WORDS 4096
#define FIRST_OWN_OID 16384
#define MOST_TARGETS 32
#define MOST_TABLES 4096

enum { XACT_COMMIT = 0, XACT_ABORT = 2, XACT_PREPARE = 3, XACT_PRE_COMMIT = 5 };
enum { COMMAND_SELECT = 1 };

/* Where things are in PlannedStmt and RangeTblEntry. The other structures are the same in all majors that are known here. */
static const struct layout {
    int major;
    unsigned char modifying_cte, parallel, rtable, targets, row_marks, relations, relid;
} layouts[] = {
    {16, 17, 21, 40, 56, 88, 96, 8},
    {17, 17, 21, 40, 56, 88, 96, 28},
    {18, 25, 29, 56, 80, 112, 120, 28},
};

struct list { /* List */
    int type, length, room;
    union { void *pointer; int number; unsigned oid; } *cells;
};

struct changed_table { /* PgStat_TableXactStatus */
    char counts[72];
    const unsigned *table; /* PgStat_TableStatus begins with the table's oid */
    struct changed_table *next;
};

struct changed_tables { /* PgStat_SubXactStatus */
    int level;
    char between[36];
    struct changed_table *first;
};

static const struct layout *plan_has; /* NULL: nothing is counted here, and nothing is said of reads */
static volatile uint64_t *counters;

static void (*next_executor_start)(void *, int);
static void (*next_any_utility)(void *, const char *, _Bool, int, void *, void *, void *, void *);
static struct changed_tables *(*changes_at_level)(int);
static unsigned (*transaction_id)(void);
static const _Bool *rows_are_counted;
static void *const *apply_worker; /* not NULL in one of logical replication */
static int (*command_tag)(void *);
static const char *(*tag_name)(int);

/* Of the transaction that runs. */
static struct {
    unsigned targets[MOST_TARGETS];
    int n;
    _Bool too_many, uncounted, locked_rows, prepared;
    struct changed_tables *changes;
} writing;

static _Bool transaction_wrote; /* one that committed since watch.h began to watch */

static void watch_plan(char *plan);
static void watch_started(char *plan);

static void count(unsigned word)
{
    __atomic_fetch_add(&counters[word], 1, __ATOMIC_SEQ_CST);
}

static void count_table(unsigned oid)
{
    count(1 + oid % (COUNTER_WORDS - 1));
}

/* Catalogs that hold what isn't DDL: statistics, large objects, how far subscriptions are. They count as tables. */
static int is_data(unsigned oid)
{
    switch (oid) {
    case 2619: case 2840: case 3429: case 3430: case 2613: case 2995: case 6000: case 6102:
        return 1;
    }
    return oid >= FIRST_OWN_OID;
}

static void note_targets(const char *plan)
{
    const struct list *targets = *(struct list *const *)(plan + plan_has->targets), *all = *(struct list *const *)(plan + plan_has->rtable);

    for (int i = 0; targets && i < targets->length; i++) {
        int number = targets->cells[i].number, seen = 0;
        unsigned oid;

        if (!all || number < 1 || number > all->length) {
            writing.too_many = 1;
            return;
        }
        oid = *(unsigned *)((char *)all->cells[number - 1].pointer + plan_has->relid);
        while (seen < writing.n && writing.targets[seen] != oid)
            seen++;
        if (seen < writing.n)
            continue;
        if (writing.n == MOST_TARGETS) {
            writing.too_many = 1;
            return;
        }
        writing.targets[writing.n++] = oid;
    }
}

static void on_executor_start(void *query, int flags)
{
    char *plan = *(char **)((char *)query + 8);

    if (!*rows_are_counted)
        writing.uncounted = 1;
    if (*(int *)(plan + 4) != COMMAND_SELECT || plan[plan_has->modifying_cte])
        note_targets(plan);
    if (*(void **)(plan + plan_has->row_marks))
        writing.locked_rows = 1;
    watch_plan(plan);
    next_executor_start(query, flags);
    watch_started(plan);
}

static void on_any_utility(void *statement, const char *text, _Bool read_only, int context, void *parameters, void *environment,
                           void *receiver, void *completion)
{
    if (!*rows_are_counted)
        writing.uncounted = 1;
    if (strcmp(tag_name(command_tag(statement)), "COMMIT PREPARED") == 0)
        writing.prepared = 1; /* what it wrote to was known to the one who prepared it */
    next_any_utility(statement, text, read_only, context, parameters, environment, receiver, completion);
}

static void count_commit(void)
{
    int everything = writing.too_many || writing.prepared, tables = writing.n;
    _Bool has_id = transaction_id() != 0;

    transaction_wrote |= has_id && writing.changes && writing.changes->first;
    if (!has_id)
        everything |= *apply_worker != NULL; /* it commits what was prepared without a statement */
    else {
        int seen = 0;

        everything |= writing.uncounted || !*rows_are_counted || !writing.changes;
        for (struct changed_table *one = writing.changes ? writing.changes->first : NULL; one; one = one->next, tables++) {
            if (++seen > MOST_TABLES || !is_data(*one->table)) {
                everything = 1;
                break;
            }
            count_table(*one->table);
        }
        everything |= tables == 0 && !writing.locked_rows;
    }
    for (int i = 0; i < writing.n; i++)
        count_table(writing.targets[i]);
    if (everything)
        count(0);
}

static void on_transaction(int event, void *argument)
{
    (void)argument;
    switch (event) {
    case XACT_PRE_COMMIT: /* the last moment at which memory may run out */
        if (transaction_id() != 0) {
            writing.changes = changes_at_level(1);
            if (writing.changes && writing.changes->level != 1)
                writing.changes = NULL;
        }
        return;
    case XACT_COMMIT:
        count_commit();
        break;
    case XACT_ABORT:
    case XACT_PREPARE:
        if (writing.prepared)
            count(0);
        break;
    default: /* of parallel workers, which write nothing */
        return;
    }
    if (writing.n || writing.changes || writing.too_many || writing.uncounted || writing.locked_rows || writing.prepared)
        memset(&writing, 0, sizeof writing);
}

/* The descriptor of the counters' file, as inherited. Without it nothing is counted, and nothing is said of reads. */
static void share_counters(int fd)
{
    void *memory;

    if (fd < 0)
        return;
    memory = mmap(NULL, COUNTER_WORDS * sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        counters = memory;
    close(fd);
}

/* In the postmaster, before it has children. */
static void begin_writes(void)
{
    const char *(*option)(const char *, _Bool, _Bool) = (const char *(*)(const char *, _Bool, _Bool))dlsym(RTLD_DEFAULT, "GetConfigOption");
    void (*call_back)(void (*)(int, void *), void *) =
        (void (*)(void (*)(int, void *), void *))dlsym(RTLD_DEFAULT, "RegisterXactCallback");
    void (**executor_start)(void *, int) = dlsym(RTLD_DEFAULT, "ExecutorStart_hook");
    void (**utility)(void *, const char *, _Bool, int, void *, void *, void *, void *) = dlsym(RTLD_DEFAULT, "ProcessUtility_hook");
    void *standard_start = dlsym(RTLD_DEFAULT, "standard_ExecutorStart"), *standard_utility = dlsym(RTLD_DEFAULT, "standard_ProcessUtility");
    const struct layout *known = NULL;
    int major;

    changes_at_level = (struct changed_tables * (*)(int)) dlsym(RTLD_DEFAULT, "pgstat_get_xact_stack_level");
    transaction_id = (unsigned (*)(void))dlsym(RTLD_DEFAULT, "GetTopTransactionIdIfAny");
    rows_are_counted = dlsym(RTLD_DEFAULT, "pgstat_track_counts");
    apply_worker = dlsym(RTLD_DEFAULT, "MyLogicalRepWorker");
    command_tag = (int (*)(void *))dlsym(RTLD_DEFAULT, "CreateCommandTag");
    tag_name = (const char *(*)(int))dlsym(RTLD_DEFAULT, "GetCommandTagName");
    if (!counters || !option || !call_back || !executor_start || !utility || !standard_start || !standard_utility || !changes_at_level ||
        !transaction_id || !rows_are_counted || !apply_worker || !command_tag || !tag_name || sizeof(void *) != 8)
        return;
    major = atoi(option("server_version_num", 0, 0)) / 10000;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].major == major)
            known = &layouts[i];
    if (!known)
        return;
    next_executor_start = *executor_start ? *executor_start : (void (*)(void *, int))standard_start;
    next_any_utility = *utility ? *utility : (void (*)(void *, const char *, _Bool, int, void *, void *, void *, void *))standard_utility;
    *executor_start = on_executor_start;
    *utility = on_any_utility;
    call_back(on_transaction, NULL);
    plan_has = known;
}

/* Whenever PostgreSQL has recovered, before it accepts anybody: a commit may have become visible whose backend didn't live to count it. */
static void count_start(const void *said, size_t length)
{
    if (counters && (memmem(said, length, "\nready ", 7) || memmem(said, length, "\nstandby ", 9)))
        count(0);
}
