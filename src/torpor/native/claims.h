/*
 * Claims: of whom a session is that logged in by a token (docs/decisions/0035-tokens.md). The door verified the token and gives the claims
 * with the hand-over, beside the startup message: there is nothing that a client can say to bring any. They are readable in SQL as the
 * setting torpor.jwt_claims, which exists in every session (empty without a token), so that nobody can make it up: PostgreSQL lets only
 * superusers change it, and whom they granted that.
 *
 * In a session with claims request.jwt.claims is the same, under the name that PostgREST made usual, and nothing else below "request."
 * can be set by its client. In all others that is as ever: anybody's.
 */
#define CLAIMS_MAGIC "TORPOR2"
#define CLAIMS "torpor.jwt_claims"
#define USUAL_CLAIMS "request.jwt.claims"
#define MAX_CLAIMS 16384

/* PostgreSQL's GucContext and GucSource, the same since 9.3 */
#define PGC_SUSET 5
#define PGC_S_OVERRIDE 10

typedef void (*define_string_fn)(const char *, const char *, const char *, char **, const char *, int, int, void *, void *, void *);

static char claims[MAX_CLAIMS + 1];
static uint32_t claims_length;
static char *claims_value, *usual_claims_value;
static int claims_defined;

static int define_claims(const char *name, char **value)
{
    define_string_fn define = (define_string_fn)dlsym(RTLD_DEFAULT, "DefineCustomStringVariable");

    if (define)
        define(name, "What the token of this session claims, as JSON; empty without a token.", NULL, value, "", PGC_SUSET, 0, NULL, NULL, NULL);
    return define != NULL;
}

/* In the postmaster, once it has read its configuration: whatever it starts inherits the setting. */
static void protect_claims(void)
{
    claims_defined = define_claims(CLAIMS, &claims_value);
}

/* In the backend, when its startup message has been read. Not 0: it can't be told whose session this is, and it must not begin. */
static int begin_claims(void)
{
    void (*set)(const char *, const char *, int, int) = (void (*)(const char *, const char *, int, int))dlsym(RTLD_DEFAULT, "SetConfigOption");
    void (*reserve)(const char *) = (void (*)(const char *))dlsym(RTLD_DEFAULT, "MarkGUCPrefixReserved");

    if (claims_length == 0)
        return 0;
    if (!claims_defined || !set || !reserve || !define_claims(USUAL_CLAIMS, &usual_claims_value))
        return -1;
    set(CLAIMS, claims, PGC_SUSET, PGC_S_OVERRIDE);
    set(USUAL_CLAIMS, claims, PGC_SUSET, PGC_S_OVERRIDE);
    reserve("request");
    return 0;
}
