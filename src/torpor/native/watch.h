/*
 * Watch: a backend of the pool says, when it was asked to, what a statement read, so that the pool knows whether its result may be kept and
 * until when (docs/decisions/0033-the-cache.md). What the text of a statement doesn't show, PostgreSQL's own hooks see: views, functions
 * in functions, policies, partitions.
 *
 * What the pool sends for a statement to be watched begins with Flush messages (signs.h): two or three, it is what comes until the next
 * ReadyForQuery; four or five, what comes after that one until the one after. In front of that ReadyForQuery come, as ParameterStatus,
 * for each relation "torpor.reads" with its oid and name, and then one "torpor.watched" with the verdict. After an error there are
 * none. A backend whose writes aren't counted (writes.h) says nothing, ever.
 *
 * Parallel workers are backends that nobody asks: what they alone do isn't seen. So a plan that calls functions of users is executed
 * by the leader alone while it is watched, and as long as it is kept.
 */
#define MOST_READS 100

static struct {
    int ends; /* ReadyForQuery messages until the end; 0: nothing is watched */
    int reads;
    _Bool writes, locks, utility, too_many, failed, own_function;
    char is_volatile[64];
    unsigned oids[MOST_READS];
    char names[MOST_READS][132];
} watch;

static char (*func_volatile)(unsigned);
static char *(*rel_name)(unsigned), *(*space_name)(unsigned);
static unsigned (*rel_space)(unsigned);
static char (*rel_kind)(unsigned);
static const struct output *plain_output;
static struct output watched_output;

static void note_volatile(const char *name)
{
    if (!watch.is_volatile[0])
        strncpy(watch.is_volatile, name && *name ? name : "?", sizeof watch.is_volatile - 1);
}

static void note_read(unsigned oid)
{
    const char *name, *space;

    for (int i = 0; i < watch.reads; i++)
        if (watch.oids[i] == oid)
            return;
    name = rel_name(oid);
    space = name ? space_name(rel_space(oid)) : NULL;
    if (!space)
        return; /* a constant of the type oid: what is read is locked, and has a name */
    if (watch.reads == MOST_READS) {
        watch.too_many = 1;
        return;
    }
    if (rel_kind(oid) == 'S') /* what a sequence says is no part of any transaction */
        note_volatile(name);
    snprintf(watch.names[watch.reads], sizeof watch.names[0], "%s.%s", space, name);
    watch.oids[watch.reads++] = oid;
}

static void watch_plan(char *plan)
{
    const struct list *relations;

    if (watch.ends != 1)
        return;
    if (*(int *)(plan + 4) != COMMAND_SELECT || plan[plan_has->modifying_cte])
        watch.writes = 1;
    if (*(void **)(plan + plan_has->row_marks))
        watch.locks = 1;
    relations = *(struct list *const *)(plan + plan_has->relations);
    for (int i = 0; relations && i < relations->length; i++)
        note_read(relations->cells[i].oid);
}

/* The plan's functions are known now; none has run yet. */
static void watch_started(char *plan)
{
    if (watch.ends == 1 && watch.own_function)
        plan[plan_has->parallel] = 0;
}

static void watch_function(unsigned oid)
{
    if (watch.ends != 1)
        return;
    watch.own_function |= oid >= FIRST_OWN_OID;
    if (!watch.is_volatile[0] && func_volatile(oid) == 'v')
        note_volatile(func_name(oid));
}

static void watch_utility(void)
{
    watch.utility |= watch.ends == 1;
}

static void begin_watched(int ends)
{
    memset(&watch, 0, offsetof(__typeof__(watch), oids));
    watch.ends = ends;
    transaction_wrote = 0;
}

static void say_watched(void)
{
    char line[160];

    for (int i = 0; i < watch.reads; i++) {
        snprintf(line, sizeof line, "%u %s", watch.oids[i], watch.names[i]);
        sign("torpor.reads", line);
    }
    if (watch.is_volatile[0])
        snprintf(line, sizeof line, "volatile %s", watch.is_volatile);
    sign("torpor.watched", watch.writes || transaction_wrote ? "writes"
                           : watch.locks                     ? "locks rows"
                           : watch.utility                   ? "utility"
                           : watch.too_many                  ? "too many tables"
                           : watch.is_volatile[0]            ? line
                                                             : "ok");
}

static int watched_putmessage(char type, const char *body, size_t length)
{
    if (type == 'E')
        watch.failed = 1;
    else if (type == 'Z') {
        if (watch.ends > 1)
            begin_watched(watch.ends - 1);
        else {
            *output = (struct output *)plain_output;
            if (!watch.failed)
                say_watched();
            watch.ends = 0;
        }
    }
    return plain_output->putmessage(type, body, length);
}

/* Outside of transactions, when the pool's word has just come. */
static void start_watch(int ends)
{
    if (!plan_has || !func_volatile)
        return;
    if (watch.ends == 0) {
        plain_output = *output;
        watched_output = *plain_output;
        watched_output.putmessage = watched_putmessage;
        *output = &watched_output;
    }
    begin_watched(ends);
}

/* In a backend of the pool. */
static void prepare_watch(void)
{
    rel_name = (char *(*)(unsigned))dlsym(RTLD_DEFAULT, "get_rel_name");
    space_name = (char *(*)(unsigned))dlsym(RTLD_DEFAULT, "get_namespace_name");
    rel_space = (unsigned (*)(unsigned))dlsym(RTLD_DEFAULT, "get_rel_namespace");
    rel_kind = (char (*)(unsigned))dlsym(RTLD_DEFAULT, "get_rel_relkind");
    if (rel_name && space_name && rel_space && rel_kind)
        func_volatile = (char (*)(unsigned))dlsym(RTLD_DEFAULT, "func_volatile");
}
